"""Trains a diffusion model: `python train.py --help`. All of it is in `ddpm_jax.cli.train`."""

import sys

from ddpm_jax.cli import command, train

if __name__ == "__main__":
    sys.exit(command.run(train.main))
