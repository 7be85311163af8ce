"""Checkpoints on disk: writing them, finding and reading them, telling damaged ones, snapshots of
averages."""
