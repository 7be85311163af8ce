"""A program for test_checkpoint.py: damages every file of a checkpoint in turn, each in four ways,
and restores.

Prints a JSON list of [damage, item, outcome]; the outcome is "right", "wrong" or the sentence that
the user reads. A process of its own, because threads of a restore that has failed go on complaining
after it.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

from ddpm_jax.checkpoints.reader import CHECKPOINTS, read_config
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import FailureError, UsageError

STEP, POSITION, CONFIG = 5, {"batches": 5}, {"seed": 0}
STATE = {
    "step": np.int32(STEP),
    "params": np.linspace(0, 1, 300, dtype=np.float32),
    "opt_state": np.ones((2, 2)),
}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


def flip(path):
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def outcome(workdir):
    try:
        state, position = Checkpointer(workdir, keep_last=1).restore(STATE)
        config = read_config(workdir, STEP)
    except (UsageError, FailureError) as error:
        return str(error)
    same = all(np.array_equal(state[name], STATE[name]) for name in STATE)
    return "right" if same and position == POSITION and config == CONFIG else "wrong"


def main():
    root = pathlib.Path(sys.argv[1])
    writer = Checkpointer(root / "whole", keep_last=1)
    writer.save(STEP, STATE, POSITION, CONFIG)
    writer.close()
    step = root / "whole" / CHECKPOINTS / str(STEP)
    files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
    results = []
    for damage in (truncate, garble, flip, pathlib.Path.unlink):
        for file in files:
            workdir = root / "damaged"
            shutil.copytree(root / "whole", workdir)
            damage(workdir / file.relative_to(root / "whole"))
            results.append([damage.__name__, file.relative_to(step).parts[0], outcome(workdir)])
            shutil.rmtree(workdir)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
