"""A program for test_checkpoint.py: saves step 1, then fails to save step 2 because no file may
grow any more.

RLIMIT_FSIZE makes the kernel refuse the writes (EFBIG), which is as near to a full disk as a test
gets without a disk of its own. Prints the sentence of each refusal.
"""

import resource
import sys

import numpy as np

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import FailureError


def main():
    checkpointer = Checkpointer(sys.argv[1], keep_last=1)
    for step in (1, 2):
        # Random numbers, because zeros compress to nothing.
        state = {"params": np.random.default_rng(step).random(1_000_000, np.float32)}
        # More of them, because a write next to the one that fails also prints something.
        state |= {
            f"more{i}": np.random.default_rng(step + i).random(300_000, np.float32)
            for i in range(9)
        }
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            checkpointer.save(step, state, {"batches": step}, {})
            checkpointer.wait()
        except FailureError as error:
            print(error)
    try:
        checkpointer.close()
    except FailureError as error:
        print(error)


if __name__ == "__main__":
    main()
