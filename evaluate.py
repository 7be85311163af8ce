"""Evaluate a trained model: `python evaluate.py --help`; see `ddpm_jax.cli.evaluate`."""

import sys

from ddpm_jax.distributed import interrupt

if __name__ == "__main__":
    interrupt.own_process()
    with interrupt.leaving():
        from ddpm_jax.cli import command, evaluate
    sys.exit(command.run(evaluate.main))
