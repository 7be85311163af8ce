"""Kills a training run again and again, half of the times while it saves: nothing saved is lost, no
number changes.

    python benchmarks/kill_soak.py --kills 50

A tiny network on the bundled digits, a record every step and a save every few. Each time `train.py`
is killed with SIGKILL after a random number of further steps, or as soon as a checkpoint after that
is half written. Checked, with exit code 1 where it fails: no kill takes a checkpoint away; every
start resumes from the newest that was on disk; and the state at the end and the records of every
step are those of a run that was never killed, bit for bit.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import load_config, override, split_overrides
from ddpm_jax.experiments.training import build_training, state_shapes

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "digits.py"
SAVE_EVERY = 4
STEPS_PER_KILL = 6  # of the run, on average: more would leave it unkilled for most of its length
PATIENCE = 600  # seconds without the event waited for


class Failed(Exception):
    """What should not have happened."""


class Run:
    """`python train.py` in a directory."""

    def __init__(self, workdir: pathlib.Path, overrides: list[str]):
        self.workdir, self._overrides, self._process = workdir, overrides, None
        self._printed = workdir.with_suffix(".log")

    def start(self) -> None:
        command = [
            sys.executable,
            "-u",
            "train.py",
            "--config",
            str(CONFIG),
            "--workdir",
            str(self.workdir),
        ]
        # So small that all it compiles is worth keeping for the next start.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.workdir.parent / "compiled")}
        environment = os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        with open(self._printed, "w") as file:
            self._process = subprocess.Popen(
                [*command, *self._overrides],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def until(self, condition) -> bool:
        """Waits until condition() or the end of the program; returns whether it is still there."""
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

    def is_saving(self) -> bool:
        folder = self.workdir / "checkpoints"
        return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    steps = arguments.kills * STEPS_PER_KILL + SAVE_EVERY
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        overrides = _overrides(steps, folder / "data")
        try:
            unkilled = Run(folder / "unkilled", overrides)
            unkilled.start()
            unkilled.finish()
            killed = Run(folder / "killed", overrides)
            kills, in_saves, lost = _kill(
                killed, arguments.kills, random.Random(arguments.seed), steps
            )
            _check_same_end(killed, unkilled, overrides)
        except Failed as failure:
            print(f"FAILED: {failure}")
            return 1
    print(
        f"{kills} kills, {in_saves} of them with a checkpoint half written, {lost} steps done "
        f"again; no checkpoint was lost, and step {steps} is that of the unkilled run bit for bit"
    )
    return 0


def _overrides(steps: int, data_dir: pathlib.Path) -> list[str]:
    fields = {
        "data.data_dir": data_dir,
        "diffusion.num_timesteps": 10,
        "diffusion.timestep_sampling": "importance",  # a state of the objective, too
        "model.ch": 32,
        "model.ch_mult": "(1,)",
        "model.num_res_blocks": 1,
        "model.attn_resolutions": "()",
        "optimizer.warmup_steps": 5,
        "train.num_steps": steps,
        "train.batch_size": 8,
        "train.log_every": 1,
        "train.sample_every": 0,
        "train.num_samples": 1,
        "train.sample_steps": 2,
        "checkpoint.save_every": SAVE_EVERY,
    }
    return [f"--config.{name}={value}" for name, value in fields.items()]


def _kill(run: Run, wanted: int, rng: random.Random, steps: int) -> tuple[int, int, int]:
    """Returns how many kills there were, how many of them left a checkpoint half written, and the
    steps they cost."""
    kills = in_saves = lost = 0
    while kills < wanted:
        before = saved_steps(run.workdir)
        run.start()
        goal = min((before[-1] if before else 0) + rng.randint(1, 2 * STEPS_PER_KILL), steps - 1)
        alive = run.until(run.has_begun) and run.until(lambda goal=goal: run.recorded() >= goal)
        if kills % 2:
            alive = alive and run.until(run.is_saving)
        time.sleep(rng.uniform(0, 0.05))
        if not alive:
            run.finish()
            break
        run.kill()
        _check_start(run.output(), before)
        after = saved_steps(run.workdir)
        if (after[-1] if after else 0) < (before[-1] if before else 0):
            raise Failed(
                f"the checkpoints were {before} before kill {kills + 1} and are {after} after it"
            )
        kills, in_saves = kills + 1, in_saves + run.is_saving()
        lost += run.recorded() - (after[-1] if after else 0)
        print(f"kill {kills}: at step {run.recorded()}, checkpoints {after}", flush=True)
    before = saved_steps(run.workdir)
    run.start()
    _check_start(run.finish(), before)
    return kills, in_saves, lost


def _check_start(output: str, saved: list[int]) -> None:
    expected = f"resuming at step {saved[-1]} of " if saved else "starting of "
    if expected not in output or "damaged" in output or "Traceback" in output:
        raise Failed(
            f"with the checkpoints {saved} it was expected to be {expected!r}, but it "
            f"said:\n{output}"
        )


def _check_same_end(killed: Run, unkilled: Run, overrides: list[str]) -> None:
    experiment = build(override(load_config(CONFIG), split_overrides(overrides)[0]))
    template = state_shapes(experiment, build_training(experiment))
    ours, theirs = (
        Checkpointer(run.workdir, keep_last=2).restore(template) for run in (killed, unkilled)
    )
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    different = [jax.tree_util.keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)]
    if different:
        raise Failed(f"these differ from the unkilled run: {', '.join(different)}")
    if _of_the_model(killed) != _of_the_model(unkilled):
        raise Failed("the records of the steps differ from those of the unkilled run")


def _of_the_model(run: Run) -> list[dict]:
    names = ("step", "loss", "grad_norm", "learning_rate")
    # The other records are of the grids: what they say has a clock in it, too.
    return [{name: record[name] for name in names} for record in run.records() if "loss" in record]


if __name__ == "__main__":
    sys.exit(main())
