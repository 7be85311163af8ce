"""Trains a tiny network for some time and measures whether the process grows: records, grids, saves
and all. Linux.

    python benchmarks/memory_growth.py --minutes 60

Every second the resident memory of the process and the arrays that JAX holds are noted, and a line
is fitted to what comes after the warm-up. Exit code 1 where a line rises by more than the bound
from its one end to the other.

Every save leaves 0.1 to 0.2 MiB behind, in part the counters that Orbax asks tensorstore for.
`--save_every 200` shows it; by default it is 2000, which is still more often than a run saves.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time

import jax
import numpy as np

from ddpm_jax.cli import command, train
from ddpm_jax.monitoring import records

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
WARM_UP = 0.3  # of the time: compiling, first save and grid, and an allocator that finds its size
MIB = 2**20


class Sampler(threading.Thread):
    """Notes seconds, resident bytes, number and bytes of JAX's arrays; at the end it asks the run
    to stop."""

    def __init__(self, seconds: float):
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int, int]] = []
        self._seconds = seconds

    def run(self) -> None:
        start = time.monotonic()
        while (now := time.monotonic() - start) < self._seconds:
            arrays = jax.live_arrays()
            self.samples.append(
                (now, _resident(), len(arrays), sum(array.nbytes for array in arrays))
            )
            del arrays
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)


def _resident() -> int:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--bound",
        type=float,
        default=16,
        help="MiB by which resident memory may rise after the warm-up",
    )
    parser.add_argument("--save_every", type=int, default=2000, help="steps from save to save")
    arguments = parser.parse_args()
    sampler = Sampler(60 * arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        sampler.start()
        code = command.run(train.main, _argv(workdir, arguments.save_every))
        steps = records.read(workdir)[-1]["step"]
    if code:
        return code
    return _report(np.array(sampler.samples, np.float64), steps, arguments.bound)


def _argv(workdir: pathlib.Path, save_every: int) -> list[str]:
    fields = {
        "data.data_dir": workdir.parent / "data",
        "diffusion.num_timesteps": 10,
        "model.ch": 32,
        "model.ch_mult": "(1,)",
        "model.num_res_blocks": 1,
        "model.attn_resolutions": "()",
        "train.num_steps": 10**9,
        "train.batch_size": 8,
        "train.log_every": 10,
        "train.sample_every": 500,
        "train.num_samples": 4,
        "train.sample_steps": 10,
        "checkpoint.save_every": save_every,
    }
    return [
        "--config",
        str(CONFIG),
        "--workdir",
        str(workdir),
        *(f"--config.{k}={v}" for k, v in fields.items()),
    ]


def _report(samples: np.ndarray, steps: int, bound: float) -> int:
    late = samples[samples[:, 0] > WARM_UP * samples[-1, 0]]
    seconds = late[-1, 0] - late[0, 0]
    print(
        f"{steps} steps in {samples[-1, 0] / 60:.1f} minutes; the last {seconds / 60:.1f} of them:"
    )
    # One array more or less is that of a batch under way; what leaks, leaks at every step.
    limits = {"resident MiB": (1, MIB, bound), "arrays": (2, 1, 10), "arrays MiB": (3, MIB, 1)}
    grows = False
    for name, (column, unit, limit) in limits.items():
        values = late[:, column] / unit
        slope = np.polyfit(late[:, 0], values, 1)[0]
        rise = slope * seconds
        grows |= rise > limit
        print(
            f"  {name:<13} {values[0]:8.1f} to {values[-1]:8.1f}, line {rise:+7.2f} (bound "
            f"{limit:g}), {slope * 3600:+8.2f} an hour, {1000 * rise / steps:+7.3f} per 1,000 "
            "steps of the run"
        )
    print("GROWS" if grows else "does not grow")
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
