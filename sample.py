"""Sample from a trained model: `python sample.py --help`; see `ddpm_jax.cli.sample`."""

import sys

from ddpm_jax.distributed import interrupt

if __name__ == "__main__":
    interrupt.own_process()
    with interrupt.leaving():
        from ddpm_jax.cli import command, sample
    sys.exit(command.run(sample.main))
