"""Seconds from typing `python train.py` to the first step done, and where they go.

    python benchmarks/start_up.py [--config configs/digits.py] [--config.train.batch_size=8 ...]

Each run is a process of its own in a directory of its own: without a compilation cache, with an
empty one, and with the one which that run filled. The first step is done when its record is on
disk.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

from measuring import ROOT, parser, report, setting

PATIENCE = 1800  # seconds


def first_step(workdir: pathlib.Path, config: str, overrides: list[str], more: list[str]) -> float:
    """Returns the seconds from the start of a process that trains to its first record; then ends
    it."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config",
        config,
        "--workdir",
        str(workdir),
        *overrides,
        *more,
    ]
    start = time.perf_counter()
    with open(workdir.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(
            [*command, "--config.train.log_every=1"], stdout=log, stderr=log, cwd=ROOT
        )
        try:
            while not (workdir / "metrics.jsonl").exists():
                if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                    log.seek(0)
                    sys.exit(f"No first step: {log.read()}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="digits.py")
    arguments, overrides = made.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cache = ["--compilation_cache", str(folder / "cache")]
        result = {
            **setting(),
            "config": pathlib.Path(arguments.config).name,
            "overrides": " ".join(overrides),
            "seconds_without_cache": first_step(folder / "none", arguments.config, overrides, []),
            "seconds_filling_the_cache": first_step(
                folder / "empty", arguments.config, overrides, cache
            ),
            "seconds_from_the_cache": first_step(
                folder / "full", arguments.config, overrides, cache
            ),
        }
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
