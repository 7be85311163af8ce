"""Evaluates a trained model: `python evaluate.py --help`. All of it is in `ddpm_jax.cli.evaluate`."""

import sys

from ddpm_jax.cli import command, evaluate

if __name__ == "__main__":
    sys.exit(command.run(evaluate.main))
