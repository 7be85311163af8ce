"""Seconds from typing a command to its result, compared with a process that only starts JAX.

    python benchmarks/start_up.py [--config configs/digits.py] [--config.train.batch_size=8 ...]
    python benchmarks/start_up.py --only sample,load         some of the commands

`train.py` to its first step, which is done when its record is on disk; `sample.py --steps 50` and
`evaluate.py --metric bpd --timestep_stride 100`, to their results, of the run of that one step;
`import ddpm_jax` with `ddpm_jax.load`. Each is a process of its own: without programs kept,
with an empty place for them (a user's first start), and with what that start has left there; of
the last also its parts (`start_up_parts.py`). The yardstick imports JAX and compiles one
convolution, in turns with them. Beside the seconds by the clock stand those that all threads spent
on a processor, which other programs disturb less, and both in units of the yardstick's.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from measuring import ROOT, parser, report, setting

PATIENCE = 1800  # seconds
YARDSTICK = """
import jax, jax.numpy as jnp
convolve = jax.jit(lambda x, kernel: jax.lax.conv(x, kernel, (1, 1), "SAME"))
convolve(jnp.ones((1, 8, 16, 16)), jnp.ones((8, 8, 3, 3))).block_until_ready()
"""


class Seconds(NamedTuple):
    """What a process took."""

    seconds: float  # by the clock
    processor: float  # of all its threads

    def in_units_of(self, yardstick: "Seconds") -> dict[str, float]:
        units = zip(self._fields, self, yardstick, strict=True)
        return self._asdict() | {f"{name}_in_yardsticks": x / unit for name, x, unit in units}


def seconds_of(argv: list[str], home: pathlib.Path, done: pathlib.Path | None = None) -> Seconds:
    """Returns what `python argv` takes until it ends, or until the file `done` is there.

    `home` is the user's cache directory.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python compiles modules once
    before = _processor_of_children()
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
        finally:
            process.kill()
            process.wait()
    return Seconds(took, _processor_of_children() - before)


def _processor_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


COMMANDS = ("train", "sample", "evaluate", "load")
Command = tuple[list[str], pathlib.Path | None]  # its arguments, the file that ends it


def commands(
    folder: pathlib.Path, config: str, overrides: list[str]
) -> dict[str, Callable[[str], Command]]:
    """Returns the commands by name: (attempt) -> `Command`."""
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


def parts_of(command: Command, home: pathlib.Path, folder: pathlib.Path) -> dict:
    """Returns the parts of a command's start, as `start_up_parts` measures them."""
    (script, *arguments), done = command
    name, out = script.removesuffix(".py"), folder / "parts.json"
    argv = ["benchmarks/start_up_parts.py", str(out), str(done or "-"), name, *arguments]
    seconds_of(argv, home)
    return json.loads(out.read_text())


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="digits.py")
    made.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(COMMANDS)}")
    arguments, overrides = made.parse_known_args(argv)
    names = arguments.only.split(",") if arguments.only else list(COMMANDS)
    if unknown := [name for name in names if name not in COMMANDS]:
        made.error(f"there is no {unknown[0]}: choose among {', '.join(COMMANDS)}")
    result = {
        **setting(),
        "config": pathlib.Path(arguments.config).name,
        "overrides": " ".join(overrides),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        one_step = ["--config.train.num_steps=1", "--config.train.sample_steps=1"]
        train = ["train.py", "--config", arguments.config, "--workdir", str(folder / "run")]
        if names != ["train"]:  # the others need a run
            seconds_of([*train, *overrides, *one_step], folder / "made")
        yardsticks = []
        made_commands = commands(folder, arguments.config, overrides)
        for command in names:
            make, home = made_commands[command], folder / f"home_{command}"
            kept = [] if command == "load" else ["--compilation_cache", "none"]
            for attempt, more in {"without": kept, "first": [], "second": []}.items():
                yardsticks.append(seconds_of(["-c", YARDSTICK], folder / "empty"))
                made_argv, done = make(attempt)
                result[f"{command}_{attempt}"] = seconds_of([*made_argv, *more], home, done)
            if command != "load":  # which is a part of the others
                result[f"{command}_parts"] = parts_of(make("parts"), home, folder)
    yardstick = Seconds(*map(statistics.median, zip(*yardsticks, strict=True)))
    for name, value in result.items():
        if isinstance(value, Seconds):
            result[name] = value.in_units_of(yardstick)
    result["yardstick"] = yardstick._asdict()
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
