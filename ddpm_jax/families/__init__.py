"""Families of checkpoints of other projects: which network their files hold, and their names."""
