"""Checkpoints: the train state, the position in the data and the config, as one atomic unit. Only here is Orbax known.

A run's directory holds `checkpoints/STEP/{state,data,config}`. A step's directory appears under its own name only when
all of it is on disk, so a run killed while saving leaves the one before as the newest. Each of the three holds the
digests of its files (`digests`), because a flipped bit would otherwise be read back as other numbers.
"""

import contextlib
import gc
import itertools
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.tree_util import tree_flatten_with_path

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.training import digests
from ddpm_jax.training.state import LATER

CHECKPOINTS = "checkpoints"
STATE, DATA, CONFIG = ITEMS = "state", "data", "config"
SET_ASIDE = ".damaged"  # added to the name of a damaged checkpoint's directory

# Orbax warns through absl of what is intended here, such as reading one item of a checkpoint out of three, and prints
# the traceback of every error that it raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class DamagedCheckpoint(FailureError):
    """What is on disk is not what was saved.

    Attributes:
      reason: half a sentence.
    """

    def __init__(self, path: pathlib.Path, reason: str):
        self.reason = reason
        whole = _newest_whole(path.parent, other_than=int(path.name))
        others = (
            f"the newest one that is whole is that of step {whole}, which train.py resumes from and sample.py and "
            f"evaluate.py take with --ckpt_step {whole}"
            if whole is not None
            else "there is no other one that is whole"
        )
        super().__init__(f"The checkpoint {path} is damaged ({reason}): {others}.")


class _StateHandler(ocp.StandardCheckpointHandler):
    """Writes the digests of a state's files, in the background, when the last of them is on disk."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        digests.write(directory)

    @classmethod
    def typestr(cls) -> str:  # what Orbax notes for other readers: they need not know this class
        return ocp.StandardCheckpointHandler.typestr()


class _JsonHandler(ocp.JsonCheckpointHandler):
    """As `_StateHandler`, of what is JSON."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        digests.write(directory)

    @classmethod
    def typestr(cls) -> str:
        return ocp.JsonCheckpointHandler.typestr()


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, args, handler in (
        (STATE, ocp.args.StandardSave, _StateHandler()),
        (DATA, ocp.args.JsonSave, _JsonHandler()),
        (CONFIG, ocp.args.JsonSave, _JsonHandler()),
    ):
        registry.add(item, args, handler)
    return registry


class Checkpointer:
    """Saves and restores the checkpoints of one run, for the processes that train it: all make every call together.

    `save` copies the state to the host and returns; the files are written in the background.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_last: int, keep_every: int = 0):
        """Opens `workdir`/checkpoints, made if missing, and removes what a killed run left half-written there.

        Args:
          workdir: the run's directory.
          keep_last: how many of the newest checkpoints to keep, at least 1.
          keep_every: keep also every checkpoint whose step is a multiple of this, for ever; 0 for none.

        Raises:
          UsageError: keep_last below 1.
          FailureError: the directory cannot be written.
        """
        if keep_last < 1:
            raise UsageError(f"checkpoint.keep_last is {keep_last}: at least the newest checkpoint must be kept.")
        self._directory = pathlib.Path(workdir).absolute() / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=_handlers())
        except OSError as error:
            raise FailureError(f"Cannot write checkpoints to {self._directory}: {error.strerror or error}.") from error

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts saving; waits first for the previous save. The state's buffers may be donated as soon as this returns.

        Args:
          step: updates done.
          state: a pytree of arrays.
          data_state: JSON-able position in the data, that of the next batch.
          config: JSON-able.

        Raises:
          FailureError: this save or the one before could not be written; earlier checkpoints are intact. Or they were
            removed, all of them, while the run was under way.
        """
        if self._manager.all_steps() and not self._directory.is_dir():
            raise FailureError(_removed(self._directory))
        items = ocp.args.Composite(
            **{
                STATE: ocp.args.StandardSave(_over_all_processes(state)),
                DATA: ocp.args.JsonSave(dict(data_state)),
                CONFIG: ocp.args.JsonSave(dict(config)),
            }
        )
        self._guard(lambda: self._manager.save(step, args=items))

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          FailureError: it could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def _guard(self, action) -> None:
        try:
            action()
        except Exception as error:  # Orbax raises what the file system, tensorstore or a thread of its own raised
            if not self._directory.is_dir():
                raise FailureError(_removed(self._directory)) from error
            good = _steps(self._directory)
            last = f"The last good checkpoint is that of step {max(good)}." if good else "There is no earlier one."
            # The writes beside the one that failed report to a closed event loop, or to nobody, with a traceback each.
            sys.unraisablehook = lambda _: None
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise FailureError(
                f"Saving a checkpoint in {self._directory} failed: {_reason(error)}. {last} Put that right and give "
                "the same command again to resume."
            ) from error

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns (state, data_state) of `step`, the newest by default.

        Args:
          template: a state with the shapes and dtypes expected; its values are not read. A leaf is laid out as the
            `sharding` of its template says, or on one device.
          step: a step on disk.

        Raises:
          UsageError: no such checkpoint, or one of another architecture.
          DamagedCheckpoint: the checkpoint's files are damaged.
        """
        path = self._directory / str(find_step(self._directory.parent, step))
        _check_whole(path)
        return _restore_state(path, template), _restore_json(path, DATA)

    def resume(self, template: Any, report: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
        """Returns (state, data_state) of the newest checkpoint that is whole; `report` is told of those that are not.

        The directories of the damaged ones get another name, so that training can save those steps again; nothing is
        deleted.

        Raises:
          UsageError: as `restore`.
          FailureError: no checkpoint is whole, or a damaged one cannot be renamed.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(_steps(self._directory)):
            try:
                found = self.restore(template, step)
            except DamagedCheckpoint as error:
                damaged.append((step, error.reason))
                continue
            if damaged and jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoints read")  # no process may still be looking at them
            for bad, reason in damaged:
                name = self._set_aside(bad)
                report(
                    f"the checkpoint of step {bad} in {self._directory} is damaged ({reason}); it is kept as {name}, "
                    f"and the run resumes from the one of step {step}"
                )
            return found
        find_step(self._directory.parent)
        listed = "; ".join(f"{step}: {reason}" for step, reason in damaged)
        raise FailureError(
            f"No checkpoint in {self._directory} is whole ({listed}): put back an intact copy of one of them, or move "
            "that directory away to start over."
        )

    def _set_aside(self, step: int) -> str:
        names = (f"{step}{SET_ASIDE}{n or ''}" for n in itertools.count())
        name = next(name for name in names if not (self._directory / name).exists())
        try:
            if jax.process_index() == 0:
                (self._directory / str(step)).rename(self._directory / name)
        except OSError as error:
            raise FailureError(
                f"The damaged checkpoint {self._directory / str(step)} cannot be renamed ({error.strerror or error}): "
                "move it away to resume from the one before it."
            ) from error
        self._manager.reload()
        return name

    def close(self) -> None:
        """Waits for the last save and stops the background threads."""
        self._guard(self._manager.close)


def _reason(error: Exception) -> str:
    """The operating system's words, which tensorstore hides among others, or the first line of the message."""
    number = getattr(error, "errno", None) or re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    return str(error).strip().split("\n")[0].rstrip(".")


def _removed(directory: pathlib.Path) -> str:
    return (
        f"{directory} was removed while the run was under way, and its checkpoints with it: bring it back to resume, "
        "or give the same command again to start over."
    )


def _over_all_processes(state: Any) -> Any:
    """What pmap returns is known to this process only; Orbax shares out the writing of what all have."""
    if jax.process_count() == 1:
        return state
    to_global = ocp.utils.fully_replicated_host_local_array_to_global_array
    return jax.tree.map(lambda leaf: to_global(leaf) if leaf.is_fully_addressable else leaf, state)


def find_step(workdir: str | os.PathLike, step: int | None = None) -> int:
    """Returns `step`, or the newest step on disk.

    Raises:
      UsageError: the directory is missing, holds no checkpoint, or not this one.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UsageError(f"There is no directory {workdir}: --ckpt takes the --workdir of a training run.")
    steps = _steps(workdir / CHECKPOINTS)
    if not steps:
        raise UsageError(
            f"{workdir} holds no checkpoint: {CHECKPOINTS}/STEP is expected in it, as train.py --workdir writes it."
        )
    if step is not None and step not in steps:
        raise UsageError(f"{workdir} has no checkpoint of step {step}: choose one of {', '.join(map(str, steps))}.")
    return steps[-1] if step is None else step


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """The steps on disk, ascending; empty where there are none."""
    return _steps(pathlib.Path(workdir) / CHECKPOINTS)


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit() and path.is_dir())


def _newest_whole(directory: pathlib.Path, *, other_than: int) -> int | None:
    """The newest step but one whose items are all there, with the digests that they were written with."""
    others = (step for step in reversed(_steps(directory)) if step != other_than)
    return next((step for step in others if not any(_damage(directory / str(step), item) for item in ITEMS)), None)


def _damage(path: pathlib.Path, item: str) -> str | None:
    if not (path / item).is_dir():
        return f"it has no {item}"
    try:
        return digests.damage(path / item)
    except PermissionError as error:  # no damage: it must not be set aside for this
        raise FailureError(f"The checkpoint {path} may not be read: make {error.filename} readable.") from error


def _check_whole(path: pathlib.Path, items: tuple[str, ...] = ITEMS) -> None:
    if not any((path / item).is_dir() for item in ITEMS):
        raise UsageError(f"{path} was not written by ddpm_jax: it has no {', '.join(ITEMS[:-1])} or {ITEMS[-1]}.")
    for item in items:
        reason = _damage(path, item)
        if reason:
            raise DamagedCheckpoint(path, reason)


def read_config(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """Returns the config saved with a checkpoint, as plain dicts and lists.

    Raises:
      UsageError: the checkpoint was not written by this package.
      DamagedCheckpoint: its files are damaged.
    """
    path = pathlib.Path(workdir).absolute() / CHECKPOINTS / str(step)
    _check_whole(path, (CONFIG,))
    return _restore_json(path, CONFIG)


def read_weights(workdir: str | os.PathLike, step: int, template: Any) -> Any:
    """Returns a part of a saved state, without reading the rest.

    Args:
      workdir: the run's directory.
      step: a step on disk (`find_step`).
      template: {"ema_params": tree of shapes and dtypes}, or {"params": ...}.

    Raises:
      UsageError: the checkpoint is not ours, or of another architecture.
      DamagedCheckpoint: its files are damaged.
    """
    path = pathlib.Path(workdir).absolute() / CHECKPOINTS / str(step)
    _check_whole(path, (STATE,))
    return _restore_state(path, template, partial=True)


def _restore_json(path: pathlib.Path, item: str) -> dict[str, Any]:
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(path / item)
    except Exception as error:
        raise _damaged(path, error) from error


def _restore_state(path: pathlib.Path, template: Any, *, partial: bool = False) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device), template
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            saved = reader.metadata(path / STATE).item_metadata
        except Exception as error:
            raise _damaged(path, error) from error
        if saved is None:
            raise _damaged(path, "its metadata cannot be read")
        later = {name: LATER[name] for name in _top(template) & LATER.keys() - _top(saved.tree)}
        later |= {name: field for name, field in _empty_fields(template).items() if name not in saved.tree}
        if later:
            older = {name: field for name, field in template._asdict().items() if name not in later}
            return template._replace(**_restore_state(path, older, partial=True), **later)
        _check_architecture(path, saved.tree, template, partial=partial)
        with _quiet_reads():
            try:
                return reader.restore(
                    path / STATE,
                    args=ocp.args.PyTreeRestore(
                        template,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(template),
                        partial_restore=partial,
                    ),
                )
            except Exception as error:
                damaged = _damaged(path, error)
            gc.collect()
    raise damaged


@contextlib.contextmanager
def _quiet_reads() -> Iterator[None]:
    """Keeps the reads under way beside one that failed from printing a traceback each when they are dropped."""
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = report


def _damaged(path: pathlib.Path, error: Exception | str) -> DamagedCheckpoint:
    return DamagedCheckpoint(path, error if isinstance(error, str) else _reason(error))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Flattens to {"params/conv_in/kernel": shape}; NamedTuples, dicts and lists all give plain names."""

    def name(key) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves, _ = tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {"/".join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _empty_fields(template: Any) -> dict[str, Any]:
    """What of a state has no leaves: a checkpoint from before such a field existed does not lack anything."""
    fields = template._asdict() if hasattr(template, "_asdict") else {}
    return {name: field for name, field in fields.items() if not jax.tree.leaves(field)}


def _top(tree: Any) -> set[str]:
    return {name.split("/")[0] for name in _shapes(tree)}


def _check_architecture(path: pathlib.Path, saved: Any, template: Any, *, partial: bool) -> None:
    here, there = _shapes(template), _shapes(saved)
    if partial:
        lacking = _top(template) - _top(saved)
        if lacking:
            raise UsageError(
                f"The checkpoint {path} holds no {min(lacking)}: it has {', '.join(sorted(_top(saved)))} only."
            )
        there = {name: shape for name, shape in there.items() if name.split("/")[0] in _top(template)}
    wrong = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
    if wrong:
        name, others = wrong[0], len(wrong) - 1
        raise UsageError(
            f"The checkpoint {path} is of another architecture: {name} is {there.get(name, 'absent')} there and "
            f"{here.get(name, 'absent')} in this model{f', and {others} more differ' if others else ''}."
        )
