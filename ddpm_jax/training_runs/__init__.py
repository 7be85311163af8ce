"""Training runs in a directory: starting and resuming them, showing progress, ending them."""
