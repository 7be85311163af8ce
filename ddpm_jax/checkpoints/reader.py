"""Finding, verifying and reading checkpoints; `writer` writes them.

The layout of a checkpoint, and how it is kept whole, is described there.
"""

import contextlib
import functools
import gc
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from jax.tree_util import tree_flatten_with_path

from ddpm_jax import memory
from ddpm_jax.checkpoints import arrays, digests, layouts
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import FailureError, UsageError, say
from ddpm_jax.files import (
    NotAFile,
    absolute,
    as_path,
    check_place,
    error_reason,
    is_folder,
    is_refusal,
    is_remote,
    read_file,
)
from ddpm_jax.numerals import is_whole
from ddpm_jax.schema import LARGEST, Malformed, Table, parse

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# Orbax warns through absl of what is intended here, such as reading one item of a checkpoint out of
# three, and prints the traceback of every error that it raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)

CHECKPOINTS = "checkpoints"
STATE, DATA, CONFIG = ITEMS = "state", "data", "config"
COMMITTED = digests.LATER
_JSON = "metadata"  # the file of an item that is JSON; Orbax's name for it
ANY_TABLE = Table()


class DamagedCheckpoint(FailureError):
    """What is on disk is not what was saved.

    Attributes:
      reason: half a sentence.
    """

    def __init__(self, path: pathlib.Path, reason: str):
        self.reason = reason
        whole = _newest_whole(path.parent, other_than=int(path.name))
        others = (
            f"the newest one that is whole is that of step {whole}, which train.py resumes from "
            f"and sample.py and evaluate.py take with --ckpt_step {whole}"
            if whole is not None
            else "there is no other one that is whole"
        )
        super().__init__(f"The checkpoint {path} is damaged ({reason}): {others}.")


class MissingFields(UsageError):
    """A checkpoint lacks fields of the state that are asked for.

    Attributes:
      saved: the fields that it has, "params" say.
    """

    def __init__(self, path: pathlib.Path, lacking: set[str], saved: set[str]):
        self.saved = saved
        super().__init__(
            f"The checkpoint {path} holds no {min(lacking)}: it has "
            f"{', '.join(sorted(saved))} only."
        )


def check_name(workdir: pathlib.Path) -> None:
    r"""Refuse a directory that would be taken for another one.

    Beneath Orbax, tensorstore takes a \ for a / and names for text; and Orbax looks for files by a
    pattern, in which [1] stands for 1. A checkpoint would be written there and never be found.

    Raises:
      UsageError: there is such a character in its path.
    """
    text = str(absolute(workdir))
    found = re.search(r"\\|\[[^/]*\]|[\ud800-\udfff]", text)
    if found:
        raise UsageError(
            f"Checkpoints cannot be kept in {text}, because of the {found[0]} in its name: rename "
            "it, or name another directory."
        )


def find_step(workdir: str | os.PathLike, step: int | None = None) -> int:
    """Return `step`, or the newest step on disk.

    Raises:
      UsageError: the directory is missing, holds no checkpoint, or not that step.
    """
    workdir = as_path(workdir)
    check_name(workdir)
    check_place(workdir, flag="--ckpt")
    if not is_folder(workdir):
        raise UsageError(f"There is no directory {workdir}: name the --workdir of a training run.")
    steps = steps_in(workdir / CHECKPOINTS)
    if not steps:
        raise UsageError(
            f"{workdir} holds no checkpoint: {CHECKPOINTS}/STEP is expected in it, as train.py "
            "--workdir writes it."
        )
    if step is not None and step not in steps:
        raise UsageError(
            f"{workdir} has no checkpoint of step {step}: choose one of "
            f"{', '.join(map(str, steps))}."
        )
    return steps[-1] if step is None else step


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """Return the steps on disk, ascending; empty where there are none."""
    return steps_in(as_path(workdir) / CHECKPOINTS)


def steps_in(directory: pathlib.Path) -> list[int]:
    """Return the steps of the checkpoints in a directory, ascending."""
    return sorted(
        int(path.name)
        for path in directory.glob("*")
        if _is_a_step(path.name) and _is_complete(path)
    )


def _is_a_step(name: str) -> bool:
    return is_whole(name) and str(int(name)) == name


def _is_complete(path: pathlib.Path) -> bool:
    """Return whether a checkpoint has been saved completely.

    In a bucket, where nothing can be renamed, an object written last marks it.
    """
    return (path / COMMITTED).exists() if is_remote(path) else path.is_dir()


def _newest_whole(directory: pathlib.Path, *, other_than: int) -> int | None:
    """Return the newest step except one whose items are all there and match their digests."""
    others = (step for step in reversed(steps_in(directory)) if step != other_than)
    return next(
        (
            step
            for step in others
            if not any(_damage(directory / str(step), item) for item in ITEMS)
        ),
        None,
    )


def _damage(path: pathlib.Path, item: str) -> str | None:
    with _within_reach(path):
        try:
            if not is_remote(path):
                digests.check_files(path)
        except NotAFile as error:
            return str(error)
        return digests.damage(path / item) if is_folder(path / item) else f"it has no {item}"


@functools.cache
def _warn_of_missing_sums(path: pathlib.Path, item: str) -> None:
    """Say once that an item of a checkpoint on a disk has no digests."""
    if hosts.is_primary():
        say(
            f"warning: the checkpoint {path} has no {item}/{digests.SUMS}, as those of old "
            "versions have none: whether its files are what was written is not known.",
            sys.stderr,
        )


@contextlib.contextmanager
def _within_reach(path: pathlib.Path) -> Iterator[None]:
    """Report errors of access, which are no damage: no checkpoint is set aside for them."""
    try:
        yield
    except PermissionError as error:
        raise FailureError(
            f"The checkpoint {path} may not be read: make {error.filename} readable."
        ) from error
    except Exception as error:
        if not is_refusal(error):
            raise
        raise _out_of_reach(path, error) from error


def check_whole(path: pathlib.Path, items: tuple[str, ...] = ITEMS) -> None:
    """Compare the items of the checkpoint `path` with their digests.

    Raises:
      UsageError: it is not a checkpoint of this package.
      DamagedCheckpoint: an item is missing or damaged.
    """
    with _within_reach(path):
        ours = any(is_folder(path / item) for item in ITEMS)
    if not ours:
        raise UsageError(
            f"{path} was not written by ddpm_jax: it has no {', '.join(ITEMS[:-1])} or {ITEMS[-1]}."
        )
    for item in items:
        reason = _damage(path, item)
        if reason:
            raise DamagedCheckpoint(path, reason)
        if not is_remote(path) and not (path / item / digests.SUMS).exists():
            _warn_of_missing_sums(path, item)


def read_config(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
    """Return the config saved with a checkpoint, as plain dicts and lists.

    Raises:
      UsageError: the checkpoint was not written by this package.
      DamagedCheckpoint: its files are damaged.
    """
    path = absolute(as_path(workdir)) / CHECKPOINTS / str(step)
    check_whole(path, (CONFIG,))
    return restore_json(path, CONFIG)


def read_weights(workdir: str | os.PathLike, step: int, template: Any) -> Any:
    """Return a part of a saved state, without reading the rest.

    Args:
      workdir: the run's directory.
      step: a step on disk (`find_step`).
      template: fields of the state, {"ema_params": tree of shapes and dtypes} say, or {"params":
        ...}.

    Raises:
      MissingFields: a UsageError, the checkpoint has no such field.
      UsageError: the checkpoint is not ours, or of another architecture.
      DamagedCheckpoint: its files are damaged.
    """
    path = absolute(as_path(workdir)) / CHECKPOINTS / str(step)
    check_whole(path, (STATE,))
    found = arrays.read(path / STATE, template)
    return restore_state(path, template, partial=True) if found is None else found


def restore_json(path: pathlib.Path, item: str, kind: Table = ANY_TABLE) -> dict[str, Any]:
    """Return an item of the checkpoint `path` that is JSON.

    Raises DamagedCheckpoint if it does not match the schema `kind`.
    """
    try:
        return parse(read_file(path / item / _JSON, largest=LARGEST + 1), kind)
    except Malformed as error:
        raise DamagedCheckpoint(path, f"in its {item}, {error}") from error
    except Exception as error:
        if not is_refusal(error):
            raise
        raise _damaged(path, error) from error


def restore_state(path: pathlib.Path, template: Any, *, partial: bool = False) -> Any:
    """Return the state in the checkpoint `path`, laid out as `template`.

    If `partial`, only the fields of the template are read.

    Raises:
      UsageError: it is of another architecture.
      DamagedCheckpoint: it cannot be read.
    """
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device
        ),
        template,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            saved = reader.metadata(path / STATE).item_metadata
        except Exception as error:
            raise _damaged(path, error) from error
        if saved is None:
            raise _damaged(path, "its metadata cannot be read")
        older = not layouts.is_current(saved.tree)
        tree = layouts.to_current(saved.tree) if older else saved.tree
        fields = template._asdict() if hasattr(template, "_asdict") else dict(template)
        absent = _absent_fields(template, tree)
        wanted = {name: field for name, field in fields.items() if name not in absent}
        partial = partial or bool(absent)
        _check_architecture(path, tree, wanted, partial=partial)
        if older:
            as_saved = layouts.to_older(wanted, saved.tree)
            restored = layouts.from_older(_read(reader, path, as_saved, partial=True), wanted)
        else:
            restored = _read(reader, path, wanted, partial=partial)
    whole = restored | absent
    return template._replace(**whole) if hasattr(template, "_replace") else whole


def _read(reader: "ocp.Checkpointer", path: pathlib.Path, template: Any, *, partial: bool) -> Any:
    import orbax.checkpoint as ocp

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
    """Silence the tracebacks of the other reads that are dropped when one fails."""
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = report


def _damaged(path: pathlib.Path, error: Exception | str) -> FailureError | MemoryError:
    if isinstance(error, Exception) and memory.is_exhaustion(error):
        return MemoryError(str(error))  # that there is no room for it is not its fault
    if is_remote(path) and isinstance(error, Exception):
        return _out_of_reach(path, error)  # its objects are what was written: that has been seen
    return DamagedCheckpoint(path, error if isinstance(error, str) else error_reason(error, path))


def _out_of_reach(path: pathlib.Path, error: Exception) -> FailureError:
    return FailureError(
        f"The checkpoint {path} cannot be read ({error_reason(error, path)}). It is left as it is: "
        "put that right and give the same command again."
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Flatten to {"params/conv_in/kernel": shape}.

    NamedTuples, dicts and lists all give plain names.
    """

    def name(key) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves, _ = tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {"/".join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _absent_fields(template: Any, saved: Any) -> dict[str, Any]:
    """Return the fields that an older checkpoint may lack: empty ones, and those with defaults."""
    if not hasattr(template, "_asdict"):
        return {}
    empty = {
        n: x for n, x in template._asdict().items() if n not in saved and not jax.tree.leaves(x)
    }
    defaults = {n: x for n, x in template._field_defaults.items() if jax.tree.leaves(x)}
    fields = _top(saved)
    return empty | {name: x for name, x in defaults.items() if name not in fields}


def _top(tree: Any) -> set[str]:
    return {name.split("/")[0] for name in _shapes(tree)}


def _check_architecture(path: pathlib.Path, saved: Any, template: Any, *, partial: bool) -> None:
    here, there = _shapes(template), _shapes(saved)
    if partial:
        lacking = _top(template) - _top(saved)
        if lacking:
            raise MissingFields(path, lacking, _top(saved))
        fields = _top(template)
        there = {name: shape for name, shape in there.items() if name.split("/")[0] in fields}
    wrong = [
        name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)
    ]
    if wrong:
        name, others = wrong[0], len(wrong) - 1
        raise UsageError(
            f"The checkpoint {path} is of another architecture: {name} is "
            f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} in this "
            f"model{f', and {others} more differ' if others else ''}."
        )
