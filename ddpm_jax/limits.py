"""Upper limits of settings: larger numbers could only be mistakes."""

MAX_SEED = 2**32 - 1  # JAX keeps 32 bits of a seed: larger ones repeat the draws of smaller ones
MAX_STEP = 2**31 - 1  # a run counts its updates in 32 bits
MAX_TIMESTEPS = 1_000_000  # of a chain, or of its walk
MAX_IMAGES = 10_000_000  # of one command
MAX_BATCH = 1_000_000  # images at a time
MAX_SECONDS = 10**8  # three years
