"""Checkpoints on disk: writing, finding, reading and verifying them; snapshots of averages."""
