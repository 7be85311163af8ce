"""The directory of a run: whether a run can train in it or has begun there, its settings."""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.checkpoints.reader import check_name, saved_steps
from ddpm_jax.data.data_dir import check_not_run_output
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.few_steps import num_rounds
from ddpm_jax.experiments.run_settings import FIRST_STAGE, config_in, read_settings
from ddpm_jax.files import check_place, is_remote, reporting, write_atomically
from ddpm_jax.monitoring import records
from ddpm_jax.training.optimizer import check_length

CONFIG_FILE = "config.json"


def check_apart(
    config: ConfigDict, workdir: pathlib.Path, *, compilation_cache: str | None = None
) -> None:
    """Refuse a folder of pictures that the run would write into.

    Raises:
      UsageError: one of the run's paths lies in the folder, or the folder in one of them.
    """
    latents = {"config.first_stage.cache": config.first_stage.cache}
    check_places(config.data, workdir=workdir, compilation_cache=compilation_cache, **latents)
    if config.data.name == "folder" and config.data.data_dir:
        check_not_run_output(config.data.data_dir, workdir)


def check_writable(workdir: pathlib.Path) -> None:
    """Refuse a directory that cannot be written, or in which checkpoints would be lost.

    Raises:
      UsageError: the reason.
    """
    check_name(workdir)
    check_place(workdir, flag="workdir", writing=True)
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"workdir {workdir} is a file: name a directory.")
    if is_remote(workdir):
        return
    there = next(
        path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists()
    )
    if not there.is_dir():
        why = f"{there} is a file"
    elif not os.access(there, os.W_OK):
        why = f"you may not write to {there}"
    else:
        return
    raise UsageError(f"workdir {workdir} cannot be made, because {why}: name another directory.")


def begun_settings(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """Return the settings of the run that has begun in a directory, or None.

    Raises:
      UsageError: it is another run than the config's.
      FailureError: its settings cannot be read.
    """
    theirs = read_settings(workdir / CONFIG_FILE)
    if theirs is None:
        return None
    steps = saved_steps(workdir)
    if not steps and not records.read(workdir):
        return None  # it ended before its first record or checkpoint: this one replaces it
    if bool(config.first_stage.ckpt) != (FIRST_STAGE in theirs):
        ours, other = ("latents", "pixels") if config.first_stage.ckpt else ("pixels", "latents")
        raise UsageError(
            f"{workdir} holds a run over {other}, and this config is of one over {ours}: give "
            "first_stage.ckpt as it was, or another workdir."
        )
    _check_config(workdir, config, theirs, has_checkpoint=bool(steps))
    _check_length(config, theirs, step=steps[-1] if steps else 0)
    return theirs


def _check_config(
    workdir: pathlib.Path, config: ConfigDict, theirs: dict[str, Any], *, has_checkpoint: bool
) -> None:
    """Refuse a config with which the run cannot be resumed."""
    differing = configs.differences(configs.to_dict(config), config_in(theirs))
    if not differing:
        return
    listed = "; ".join(differing[:5])
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    removal = "" if has_checkpoint else ", remove it (it has records, but no checkpoint)"
    raise UsageError(
        f"{workdir} holds a run with another config: {listed}{more}. Give the same config to "
        f"resume it{removal}, or another workdir."
    )


def _check_length(config: ConfigDict, theirs: dict[str, Any], *, step: int) -> None:
    """Refuse another train.num_steps once the learning rate has begun to fall over it."""
    o, saved = config.optimizer, configs.completed(config_in(theirs))
    check_length(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        num_steps=config.train.num_steps,
        saved_num_steps=saved["train.num_steps"],
        step=step,
        rounds=num_rounds(config),
    )


def write_settings(workdir: pathlib.Path, settings: dict[str, Any]) -> None:
    """Write the run's settings where `begun_settings` finds them.

    Raises:
      FailureError: they cannot be written.
    """
    path = workdir / CONFIG_FILE
    with reporting(path):
        write_atomically(path, json.dumps(settings, indent=2).encode())
