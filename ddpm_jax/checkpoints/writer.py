"""Writing checkpoints: state, position in the data and config, as one atomic unit.

A run's directory holds `checkpoints/STEP/{state,data,config}`. A step's directory gets its name
only when all of it is on disk, so a run killed while saving leaves the previous one as the newest.
Each of the three holds the digests of its files (`digests`), because a flipped bit would otherwise
be read back as other numbers.

Reading them is in `reader`; only these two files use Orbax.
"""

import functools
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from ddpm_jax.checkpoints import digests
from ddpm_jax.checkpoints.reader import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    STATE,
    DamagedCheckpoint,
    check_name,
    check_whole,
    find_step,
    restore_json,
    restore_state,
    steps_in,
)
from ddpm_jax.data.pipeline import position_schema
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import (
    NotAFile,
    absolute,
    as_path,
    error_reason,
    is_refusal,
    is_remote,
    move_folder,
)

SET_ASIDE = ".damaged"  # added to the name of a damaged checkpoint's directory


class _StateHandler(ocp.StandardCheckpointHandler):
    """A handler that adds the digests of a state's files once the last of them is on disk."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        digests.write(directory)

    @classmethod
    def typestr(cls) -> str:  # what Orbax notes for other readers: they need not know this class
        return ocp.StandardCheckpointHandler.typestr()


class _JsonHandler(ocp.JsonCheckpointHandler):
    """The same for items that are JSON."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        digests.write(directory)

    @classmethod
    def typestr(cls) -> str:
        return ocp.JsonCheckpointHandler.typestr()


def _handlers(bytes_at_once: int | None) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    limit = {} if bytes_at_once is None else {"save_concurrent_gb": bytes_at_once / 1e9}
    for item, args, handler in (
        (STATE, ocp.args.StandardSave, _StateHandler(**limit)),
        (DATA, ocp.args.JsonSave, _JsonHandler()),
        (CONFIG, ocp.args.JsonSave, _JsonHandler()),
    ):
        registry.add(item, args, handler)
    return registry


class Checkpointer:
    """Saving and restoring of the checkpoints of one run.

    All processes that train it make every call together.

    `save` copies the state to the host and returns; the files are written in the background.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep_last: int,
        keep_every: int = 0,
        before_save: Callable[[], None] = lambda: None,
        bytes_at_once: int | None = None,
    ):
        """Open `workdir`/checkpoints, and remove what a killed run left half-written there.

        It is created if missing.

        Args:
          workdir: the run's directory.
          keep_last: how many of the newest checkpoints to keep, at least 1.
          keep_every: keep also every checkpoint whose step is a multiple of this, for ever; 0 for
            none.
          before_save: called before each save, which it prevents by an error: the `check` of the
            directory's lock.
          bytes_at_once: of the state that are under way to the disk, each in a copy; more than
            those of its largest array. None: all, which is fastest.

        Raises:
          UsageError: keep_last below 1, or a name in which Orbax would not find its files.
          FailureError: the directory cannot be written, or there are pipes or devices in its
            checkpoints.
        """
        if keep_last < 1:
            raise UsageError(
                f"checkpoint.keep_last is {keep_last}: at least the newest checkpoint must be kept."
            )
        check_name(as_path(workdir))
        self._directory, self._before_save = absolute(as_path(workdir)) / CHECKPOINTS, before_save
        self._check_files()
        _say_failed_writes_once()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=_handlers(bytes_at_once)
            )
        except Exception as error:
            if not is_refusal(error):
                raise
            reason = error_reason(error, self._directory)
            raise FailureError(
                f"Cannot write checkpoints to {self._directory}: {reason}."
            ) from error

    def _check_files(self) -> None:
        """Refuse pipes and devices, on which Orbax would wait for ever.

        Orbax opens a file of every checkpoint at once.
        """
        if is_remote(self._directory) or not self._directory.is_dir():
            return
        for step in steps_in(self._directory):
            try:
                digests.check_files(self._directory / str(step))
            except NotAFile as error:
                raise FailureError(
                    f"In {self._directory}, a checkpoint is damaged: {error}. Move it away."
                ) from error

    def latest_step(self) -> int | None:
        """Return the newest step on disk, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, data_state: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        """Start saving; wait first for the previous save.

        The state's buffers may be donated as soon as this returns.

        Args:
          step: updates done.
          state: a pytree of arrays.
          data_state: JSON-able position in the data, that of the next batch: see
            `pipeline.position_schema`.
          config: JSON-able.

        Raises:
          FailureError: this save or the one before could not be written; earlier checkpoints are
            intact. Or they were removed, all of them, while the run was under way. Or `before_save`
            raises it.
        """
        self._before_save()
        if self._manager.all_steps() and self._is_gone():
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
        """Return when the last save is on disk.

        Raises:
          FailureError: it could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def _guard(self, action) -> None:
        try:
            action()
        # Orbax raises what the file system, tensorstore or a thread of its own raised
        except Exception as error:
            if hosts.joined() and hosts.is_loss(error):
                raise FailureError(hosts.LOST) from error
            if self._is_gone():
                raise FailureError(_removed(self._directory)) from error
            raise FailureError(
                f"Saving a checkpoint in {self._directory} failed: "
                f"{error_reason(error, self._directory)}. {self._last_good()} Put that right and "
                "give the same command again to resume."
            ) from error

    def _is_gone(self) -> bool:
        # a bucket has no folders to be gone
        return not is_remote(self._directory) and not self._directory.is_dir()

    def _last_good(self) -> str:
        try:
            good = steps_in(self._directory)
        except Exception as error:
            if not is_refusal(error):
                raise
            return "Earlier checkpoints are intact."  # there is no looking now
        return (
            f"The last good checkpoint is that of step {max(good)}."
            if good
            else "There is no earlier one."
        )

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Return (state, data_state) of `step`, the newest by default.

        Args:
          template: a state with the shapes and dtypes expected; its values are not read. A leaf is
            laid out as the `sharding` of its template says, or on one device.
          step: a step on disk.

        Raises:
          UsageError: no such checkpoint, or one of another architecture.
          DamagedCheckpoint: the checkpoint's files are damaged, or its position in the data is not
            that of its step.
        """
        path = self._directory / str(find_step(self._directory.parent, step))
        check_whole(path)
        position = restore_json(
            path, DATA, position_schema(int(path.name))
        )  # before: it costs nothing
        return restore_state(path, template), position

    def resume(self, template: Any, report: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
        """Return (state, data_state) of the newest undamaged checkpoint; report damaged ones.

        The directories of the damaged ones get another name, so that training can save those steps
        again; nothing is deleted.

        Raises:
          UsageError: as `restore`.
          FailureError: no checkpoint is whole, or a damaged one cannot be renamed.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(steps_in(self._directory)):
            try:
                found = self.restore(template, step)
            except DamagedCheckpoint as error:
                damaged.append((step, error.reason))
                continue
            if damaged:
                hosts.wait_for_all("checkpoints read")  # no process may still be looking at them
            for bad, reason in damaged:
                name = self._set_aside(bad)
                report(
                    f"the checkpoint of step {bad} in {self._directory} is damaged ({reason}); it "
                    f"is kept as {name}, and the run resumes from the one of step {step}"
                )
            return found
        find_step(self._directory.parent)
        listed = "; ".join(f"{step}: {reason}" for step, reason in damaged)
        raise FailureError(
            f"No checkpoint in {self._directory} is whole ({listed}): put back an intact copy of "
            "one of them, or move that directory away to start over."
        )

    def _set_aside(self, step: int) -> str:
        names = (f"{step}{SET_ASIDE}{n or ''}" for n in itertools.count())
        name = next(name for name in names if not (self._directory / name).exists())
        try:
            if hosts.is_primary():
                move_folder(self._directory / str(step), self._directory / name)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise FailureError(
                f"The damaged checkpoint {self._directory / str(step)} cannot be renamed "
                f"({error_reason(error, self._directory)}): move it away to resume from the one "
                "before it."
            ) from error
        # or the others would take that step for saved
        hosts.wait_for_all("a damaged checkpoint is set aside")
        self._manager.reload()
        return name

    def close(self) -> None:
        """Wait for the last save and stop the background threads."""
        self._guard(self._manager.close)


@functools.cache
def _say_failed_writes_once() -> None:
    """Silence what Orbax's event loop prints of failed writes other than the one raised.

    They report to a loop that is closed by then, or to nobody, with a traceback each, perhaps
    before the sentence.
    """
    print_exception, print_unraisable = sys.excepthook, sys.unraisablehook

    def on_exception(kind, error, traceback) -> None:
        if not _is_of_closed_loop(error):
            print_exception(kind, error, traceback)

    def on_unraisable(unraisable) -> None:
        if not _is_of_closed_loop(unraisable.exc_value):
            print_unraisable(unraisable)

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        return not (
            _is_of_closed_loop(error) or (isinstance(error, Exception) and is_refusal(error))
        )

    sys.excepthook, sys.unraisablehook = on_exception, on_unraisable
    logging.getLogger("asyncio").addFilter(is_news)


def _is_of_closed_loop(error: object) -> bool:
    in_background = threading.current_thread() is not threading.main_thread()
    return (
        in_background and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    )


def _removed(directory: os.PathLike) -> str:
    return (
        f"{directory} was removed while the run was under way, and its checkpoints with it: bring "
        "it back to resume, or give the same command again to start over."
    )


def _over_all_processes(state: Any) -> Any:
    """Return a state that all processes have, which Orbax then writes in shares."""
    if jax.process_count() == 1:
        return state
    to_global = ocp.utils.fully_replicated_host_local_array_to_global_array
    return jax.tree.map(lambda leaf: to_global(leaf) if leaf.is_fully_addressable else leaf, state)
