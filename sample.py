"""Samples from a trained model: `python sample.py --help`. All of it is in `ddpm_jax.cli.sample`."""

import sys

from ddpm_jax.cli import command, sample

if __name__ == "__main__":
    sys.exit(command.run(sample.main))
