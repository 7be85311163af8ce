"""A run of `train.py` that is killed and resumed, against one that is not: the same bytes."""

import hashlib
import os
import pathlib
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from train_run import TINY, Failed, Run, config_overrides, process_environment

from gpu_parts.plan import Plan, Record, Save

STEPS, SAVE_EVERY = 40, 5
# What is tried, in turn, until the two runs end alike.
XLA_FLAGS = ("", "--xla_gpu_deterministic_ops=true")


def measure(plan: Plan, save: Save) -> None:
    record: Record = {"steps": STEPS, "save_every": SAVE_EVERY, "tried": []}
    for number, flags in enumerate(XLA_FLAGS):
        start = time.time()
        record["tried"].append(_compare(plan.folder / f"resume_{number}", flags))
        save(record)
        took = time.time() - start
        if record["tried"][-1]["equal"] or plan.left() < took:
            break
    record["equal"] = record["tried"][-1]["equal"]
    save(record)


def _compare(folder: pathlib.Path, flags: str) -> Record:
    """Kills a run after its first checkpoint; then both go on to the end, side by side.

    What the killed run compiled is kept and used by both, since on a GPU XLA chooses among kernels
    by their speed, and might choose differently the next time.
    """
    folder.mkdir()
    # Two runs share the device, so neither takes three quarters of its memory at its start.
    environment = process_environment(
        folder / "compiled",
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
    )
    fields = TINY | {"train.num_steps": STEPS, "checkpoint.save_every": SAVE_EVERY}
    killed, unkilled = (
        Run(
            folder / name,
            config_overrides(fields | {"data.data_dir": folder / f"data_of_{name}"}),
            environment=environment,
        )
        for name in ("killed", "unkilled")
    )
    killed.start()
    if not killed.until(lambda: killed.saved_steps() != []):
        killed.finish()
        raise Failed(f"The run of {STEPS} steps was over before it could be killed.")
    killed.kill()
    killed.output()
    at, saved = killed.recorded(), killed.saved_steps()
    killed.start()
    unkilled.start()
    resumed_at = f"resuming at step {saved[-1]} of "
    if resumed_at not in killed.finish():
        raise Failed(f"With the checkpoints {saved} the run was expected to be {resumed_at!r}.")
    unkilled.finish()
    ends = [
        digests(run.workdir / "checkpoints" / str(STEPS) / "state") for run in (killed, unkilled)
    ]
    different = sorted(set(ends[0].items()) ^ set(ends[1].items()))
    same_records = killed.of_the_model() == unkilled.of_the_model()
    return {
        "xla_flags": flags,
        "killed_at_step": at,
        "resumed_at_step": saved[-1],
        "arrays": len(ends[1]),
        "different": sorted({name for name, _ in different})[:10],
        "same_records": same_records,
        "equal": not different and same_records,
    }


def digests(state: pathlib.Path) -> dict[str, str]:
    """Name -> SHA-256 of type, shape and bytes of every array of a checkpoint's state.

    The files themselves are named at random, and hold the arrays compressed.
    """
    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.metadata(state).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        arrays = reader.restore(state, restore_args=as_numpy)

    def digest(array: np.ndarray) -> str:
        about = f"{array.dtype} {array.shape} ".encode()
        return hashlib.sha256(about + np.ascontiguousarray(array).tobytes()).hexdigest()

    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path): digest(np.asarray(leaf)) for path, leaf in leaves}
