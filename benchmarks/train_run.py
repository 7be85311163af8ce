"""`python train.py` as a subprocess that is watched, killed and read.

Only the standard library is needed here: the process that waits holds no device.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 600  # seconds without the event waited for

# A network of the digits so small that a run is mostly its start and its saves.
TINY = {
    "diffusion.num_timesteps": 10,
    "model.ch": 32,
    "model.ch_mult": "(1,)",
    "model.num_res_blocks": 1,
    "model.attn_resolutions": "()",
    "optimizer.warmup_steps": 5,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.sample_every": 0,
    "train.num_samples": 1,
    "train.sample_steps": 2,
}


class Failed(Exception):
    """What should not have happened."""


def config_overrides(fields: Mapping[str, Any]) -> list[str]:
    """Returns the arguments that set these fields of the config."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def process_environment(compiled: pathlib.Path, **added: str) -> dict[str, str]:
    """The environment of a command of this checkout that keeps all its programs in `compiled`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | {"PYTHONPATH": path} | cache | added


class Run:
    """`python train.py` in a directory."""

    def __init__(
        self,
        workdir: pathlib.Path,
        arguments: Sequence[str],
        *,
        config: str = "digits.py",
        environment: Mapping[str, str] | None = None,
    ):
        self.workdir, self._arguments = workdir, arguments
        self._config, self._environment = ROOT / "configs" / config, environment
        self._process, self._printed = None, workdir.with_suffix(".log")

    def start(self) -> None:
        command = [sys.executable, "-u", "train.py", "--config", str(self._config)]
        command += ["--workdir", str(self.workdir), *self._arguments]
        environment = self._environment or process_environment(self.workdir.parent / "compiled")
        with open(self._printed, "w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits until condition() or the end of the program; returns whether it still runs."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            if condition():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"train.py hangs:\n{self.output()}")
            time.sleep(0.0005)
        return False

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """What was printed, when the program has ended."""
        self._process.wait(PATIENCE)
        return self._printed.read_text()

    def has_begun(self) -> bool:
        """Whether this start has cleared away what the one before left half done."""
        return "\nstep " in self._printed.read_text()  # the line of its first step

    def finish(self) -> str:
        output = self.output()
        if self._process.returncode:
            raise Failed(f"train.py ended with {self._process.returncode}:\n{output[-2000:]}")
        return output

    def records(self) -> list[dict]:
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def recorded(self) -> int:
        """The last step that is recorded, cheaply."""
        records = self.records()
        return records[-1]["step"] if records else 0

    def of_the_model(self) -> list[dict]:
        """The numbers that the model and the data decide of every recorded step, and no clock."""
        names = ("step", "loss", "grad_norm", "learning_rate")
        records = (record for record in self.records() if "loss" in record)  # others are of grids
        return [{name: record[name] for name in names} for record in records]

    def saved_steps(self) -> list[int]:
        """The steps whose checkpoints are complete."""
        folder = self.workdir / "checkpoints"
        names = os.listdir(folder) if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def data_line(self) -> str | None:
        """What the run printed of its data."""
        lines = self.output().splitlines()
        return next((line for line in lines if line.startswith("data ")), None)

    def is_saving(self) -> bool:
        folder = self.workdir / "checkpoints"
        return folder.exists() and any("tmp" in path.name for path in folder.iterdir())
