"""Train a diffusion model: `python train.py --help`; see `ddpm_jax.cli.train`."""

import sys

from ddpm_jax import host_memory
from ddpm_jax.distributed import interrupt

if __name__ == "__main__":
    interrupt.own_process()
    host_memory.keep_freed()
    with interrupt.leaving():
        from ddpm_jax.cli import command, train
    sys.exit(command.run(train.main))
