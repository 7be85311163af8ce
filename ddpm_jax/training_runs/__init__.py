"""A training run in its directory: from a config to the first step, what is shown, how it ends."""
