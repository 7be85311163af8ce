"""Flags shared by several commands: checkpoint, time limit, several processes."""

import dataclasses
from typing import Any

from ddpm_jax.cli.arguments import Devices, Flags
from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.file_options import FileOptions, LowRank
from ddpm_jax.limits import MAX_SECONDS, MAX_STEP
from ddpm_jax.settings import Settings, setting

_MAX_PROCESSES, _LONGEST_WAIT = 100_000, 7 * 24 * 3600
# Where and how a process runs; all other flags must be equal in all processes.
_OWN = ("process_id", "connect_timeout", "platform", "compilation_cache", "data_dir")


@dataclasses.dataclass(frozen=True)
class Weights(Settings):
    """Which model"""

    ckpt: str | None = setting(
        None,
        "Directory of a training run: the --workdir of train.py. Or a model of another project, "
        "Stable Diffusion among them (docs/checkpoints.md): a directory in diffusers' layout, a "
        "file, or its name on the Hugging Face hub, owner/model or owner/model@revision.",
        path=True,
        metavar="DIR",
    )
    step: int | None = setting(
        None,
        "Which of its checkpoints; the newest by default.",
        lower=0,
        upper=MAX_STEP,
        flag="ckpt_step",
    )
    raw_weights: bool = setting(
        False, "Use the weights as trained instead of their moving average."
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint(Weights):
    """Which model"""

    dtype: str | None = setting(
        None,
        "Of the computation, and of Stable Diffusion's weights: float32 or bfloat16; by default "
        "that of the run, and float32 for Stable Diffusion.",
        choices=("float32", "bfloat16"),
    )
    variant: str | None = setting(
        None, "Which weights in a directory of diffusers, as in fp16.", metavar="NAME"
    )
    prediction_type: str | None = setting(
        None,
        "What the network in a single file of Stable Diffusion predicts, which the file does not "
        "say: epsilon, or v_prediction; by default as in the released models of its kind.",
        choices=("epsilon", "v_prediction"),
    )
    preset: str | None = setting(
        None, "Released model that the files of another project have the settings of."
    )


def reading(flags: Flags) -> dict[str, Any]:
    """Return how the model of `Checkpoint` is read: arguments of `loading.load_trained`."""
    files = FileOptions(
        variant=flags.variant, prediction_type=flags.prediction_type, preset=flags.preset
    )
    given = {name: getattr(flags, name) for name in ("raw_weights", "dtype")}
    return {"step": flags.ckpt_step, "files": files} | given


def updating(flags: Flags) -> dict[str, Any]:
    """Return the updates of `LowRank` that are merged: arguments of `loading.load_trained`."""
    chosen = flags.make(LowRank)
    return {"lora": chosen.lora, "lora_scale": chosen.lora_scale}


def check_names_a_run(flags: Flags) -> None:
    """Refuse a command line without --ckpt.

    Raises:
      UsageError: it is missing.
    """
    if not flags.ckpt:
        raise UsageError(
            "--ckpt is missing: name the directory of a training run, as in --ckpt runs/digits."
        )


@dataclasses.dataclass(frozen=True)
class Limit(Settings):
    """How long"""

    max_seconds: int | None = setting(
        None,
        "Stop in order after this time, with what is done kept: the same command goes on with the "
        "rest.",
        lower=1,
        upper=MAX_SECONDS,
    )


def make_interrupt(flags: Flags) -> interrupt.Interrupt:
    """Return the interrupt for a command that keeps its results when stopped.

    The time limit begins here.
    """
    promise = "stopping, with what is done kept; Ctrl-C again leaves at once"
    return interrupt.Interrupt(promise, max_seconds=flags.max_seconds)


@dataclasses.dataclass(frozen=True)
class Processes(Settings):
    """Several processes together"""

    distributed: bool = setting(
        False,
        "One of several processes that work together, say one on each host: give every one the "
        "same command. On a TPU slice, under Slurm and under Open MPI nothing else is needed.",
    )
    coordinator: str | None = setting(
        None, "With --distributed: where process 0 listens.", metavar="HOST:PORT"
    )
    num_processes: int | None = setting(
        None,
        "With --distributed: how many processes there are.",
        lower=1,
        upper=_MAX_PROCESSES,
    )
    process_id: int | None = setting(
        None,
        "With --distributed: which of them this is, from 0.",
        lower=0,
        upper=_MAX_PROCESSES - 1,
    )
    connect_timeout: int | None = setting(
        None,
        "With --distributed: seconds to wait for the others (default: 300).",
        lower=1,
        upper=_LONGEST_WAIT,
    )


def join_processes(processes: Processes) -> None:
    """Connect the processes that work together, before JAX is asked for its devices.

    Raises:
      UsageError: some of the flags without the others; what `hosts.join` raises.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = [name for name in names if getattr(processes, name) is not None]
    if not processes.distributed:
        for name in (*given, *(["connect_timeout"] if processes.connect_timeout else [])):
            raise UsageError(
                f"--{name} is for several processes: give --distributed too, or leave it out."
            )
        return
    if given and len(given) < len(names):
        missing = " and ".join(f"--{name}" for name in names if name not in given)
        raise UsageError(
            f"{missing} {'is' if len(given) == 2 else 'are'} missing: give all of --coordinator, "
            "--num_processes and --process_id, or none of them on a TPU slice and under Slurm."
        )
    if given and processes.process_id >= processes.num_processes:
        raise UsageError(
            f"--process_id is {processes.process_id}: of {processes.num_processes} processes it is "
            f"one of 0 to {processes.num_processes - 1}."
        )
    from ddpm_jax.distributed import hosts  # JAX takes a second to import: --help need not wait

    timeout = processes.connect_timeout or hosts.CONNECT_SECONDS
    hosts.join(
        processes.coordinator, processes.num_processes, processes.process_id, timeout=timeout
    )


def common_flags(flags: Flags) -> dict[str, object]:
    """Return the flags that must be equal in all processes, for `hosts.check_equal`."""
    own = {f"--{name}" for name in _OWN}
    return {name: value for name, value in flags.by_name().items() if name not in own}


def prepare(flags: Flags) -> None:
    """Prepare JAX as the flags ask, before anything asks for its devices.

    Raises:
      UsageError: settings under which results would differ; a platform that is not there; what
        `join_processes` raises.
    """
    from ddpm_jax.cli.devices import prepare_jax  # which imports JAX

    def join() -> None:
        if hasattr(flags, "distributed"):
            join_processes(flags.make(Processes))

    prepare_jax(flags.make(Devices), join)
