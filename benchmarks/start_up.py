"""Seconds from typing a command to its result, compared with a process that only starts JAX.

    python benchmarks/start_up.py [--config configs/digits.py] [--config.train.batch_size=8 ...]

`train.py` to its first step, which is done when its record is on disk; `sample.py --steps 50` and
`evaluate.py --metric bpd --timestep_stride 100`, to their results, of the run of that one step;
`import ddpm_jax` with `ddpm_jax.load`. Each is a process of its own: without compiled programs kept,
with an empty place for them (a user's first start), and with what that start has left there.
The yardstick imports JAX and compiles one convolution, in turns with them.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from measuring import ROOT, parser, report, setting

PATIENCE = 1800  # seconds
YARDSTICK = """
import jax, jax.numpy as jnp
convolve = jax.jit(lambda x, kernel: jax.lax.conv(x, kernel, (1, 1), "SAME"))
convolve(jnp.ones((1, 8, 16, 16)), jnp.ones((8, 8, 3, 3))).block_until_ready()
"""


def seconds_of(argv: list[str], home: pathlib.Path, done: pathlib.Path | None = None) -> float:
    """Returns the seconds that `python argv` takes, or until the file `done` is there.

    `home` is the user's cache directory.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *argv], stdout=log, stderr=log, cwd=ROOT, env=environment
        )
        try:
            while process.poll() is None and not (done and done.exists()):
                if time.perf_counter() - start > PATIENCE:
                    break
                time.sleep(0.01)
            took = time.perf_counter() - start
            if process.poll() or (done and not done.exists()):
                log.seek(0)
                sys.exit(f"{' '.join(argv)}: {log.read()}")
            return took
        finally:
            process.kill()
            process.wait()


def commands(folder: pathlib.Path, config: str, overrides: list[str]) -> dict:
    """Returns the commands by name: (attempt) -> (argv, the file that ends them)."""
    run = str(folder / "run")

    def train(attempt):
        workdir = folder / f"train_{attempt}"
        argv = ["train.py", "--config", config, "--workdir", str(workdir), *overrides]
        return [*argv, "--config.train.log_every=1"], workdir / "metrics.jsonl"

    def sample(attempt):
        out = str(folder / f"sample_{attempt}")
        return [
            "sample.py",
            "--ckpt",
            run,
            "--steps",
            "50",
            "--num_samples",
            "16",
            "--out",
            out,
        ], None

    def evaluate(attempt):
        out = str(folder / f"evaluate_{attempt}")
        bound = ["--metric", "bpd", "--timestep_stride", "100", "--num_images", "16"]
        return ["evaluate.py", "--ckpt", run, *bound, "--out", out], None

    def load(attempt):
        return ["-c", f"import ddpm_jax; ddpm_jax.load({run!r})"], None

    return {"train": train, "sample": sample, "evaluate": evaluate, "load": load}


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="digits.py")
    arguments, overrides = made.parse_known_args(argv)
    result = {
        **setting(),
        "config": pathlib.Path(arguments.config).name,
        "overrides": " ".join(overrides),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        one_step = ["--config.train.num_steps=1", "--config.train.sample_every=0"]
        train = ["train.py", "--config", arguments.config, "--workdir", str(folder / "run")]
        seconds_of([*train, *overrides, *one_step], folder / "made")
        yardsticks = []
        for command, make in commands(folder, arguments.config, overrides).items():
            home = folder / f"home_{command}"
            kept = [] if command == "load" else ["--compilation_cache", "none"]
            for attempt, more in {"without": kept, "first": [], "second": []}.items():
                yardsticks.append(seconds_of(["-c", YARDSTICK], folder / "empty"))
                made_argv, done = make(attempt)
                result[f"{command}_{attempt}"] = seconds_of([*made_argv, *more], home, done)
    yardstick = statistics.median(yardsticks)
    for name in [name for name, value in result.items() if isinstance(value, float)]:
        result[f"{name}_in_yardsticks"] = result[name] / yardstick
    result["yardstick"] = yardstick
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
