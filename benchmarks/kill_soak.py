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
import pathlib
import random
import sys
import tempfile
import time

import jax
import numpy as np
from train_run import ROOT, TINY, Failed, Run, config_overrides

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import load_config, override, split_overrides
from ddpm_jax.experiments.trainer import build_training, state_shapes

CONFIG = ROOT / "configs" / "digits.py"
SAVE_EVERY = 4
STEPS_PER_KILL = 6  # of the run, on average: more would leave it unkilled for most of its length


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
    return config_overrides(
        TINY
        | {
            "data.data_dir": data_dir,
            "diffusion.timestep_sampling": "importance",  # a state of the objective, too
            "train.num_steps": steps,
            "checkpoint.save_every": SAVE_EVERY,
        }
    )


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
    expected = f"resuming at step {saved[-1]} of " if saved else "starting the first of "
    if expected not in output or "damaged" in output or "Traceback" in output:
        raise Failed(
            f"with the checkpoints {saved} it was expected to be {expected!r}, but it "
            f"said:\n{output}"
        )


def _check_same_end(killed: Run, unkilled: Run, overrides: list[str]) -> None:
    model = build(override(load_config(CONFIG), split_overrides(overrides)[0]))
    template = state_shapes(model, build_training(model))
    ours, theirs = (
        Checkpointer(run.workdir, keep_last=2).restore(template) for run in (killed, unkilled)
    )
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    different = [jax.tree_util.keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)]
    if different:
        raise Failed(f"these differ from the unkilled run: {', '.join(different)}")
    if killed.of_the_model() != unkilled.of_the_model():
        raise Failed("the records of the steps differ from those of the unkilled run")


if __name__ == "__main__":
    sys.exit(main())
