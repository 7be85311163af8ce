"""A first stage imported from another project's weights, as a run."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import check_data
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.owners import OBJECTIVES
from ddpm_jax.experiments.run_settings import run_settings
from ddpm_jax.experiments.training_params import with_training_params
from ddpm_jax.files import as_path, check_place, is_remote
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.flax_networks import open_flax
from ddpm_jax.interop.tensor_files import read_tensors
from ddpm_jax.locks import hold
from ddpm_jax.randomness import base_key

MSGPACK = ".msgpack"
_HOW = (
    "give the safetensors file of the autoencoder, as diffusers saves it, its msgpack of Flax, or "
    "its tensors in an NPZ file"
)


def import_first_stage(
    config: ConfigDict, weights: str | os.PathLike, out: pathlib.Path, *, name: str = "the config"
) -> None:
    """Write the weights of a first stage, as diffusers names them, as a run of step 0.

    Args:
      config: of the first stage.
      weights: a safetensors or NPZ file, or Flax's msgpack.
      out: a directory without a run.
      name: what the config is called in messages.

    Raises:
      UsageError: a config of another objective or of unknown data, weights of another network, an
        existing run.
      FailureError: a file cannot be read or written.
    """
    if config.objective != "first_stage":
        what = OBJECTIVES[config.objective]
        raise UsageError(f"{name} is that of {what}, but the weights are a first stage's.")
    check_data(config.data)
    model = build(config)
    check_place(out, flag="--out", writing=True)
    check_new(out)
    tensors = _read(weights)
    params = autoencoder_params_from_diffusers(tensors, model.network)
    with hold(out, "importing a first stage into it"):
        check_new(out)
        checkpointer = Checkpointer(out, keep_last=1, keep_every=1)
        checkpointer.save(0, imported_state(model, "raw", params), {}, run_settings(model))
        checkpointer.close()


def _read(weights: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Return the tensors of a file by the names of diffusers; raise as `import_first_stage`."""
    path = as_path(weights)
    if not is_remote(path) and path.is_file() and path.suffix == MSGPACK:
        return open_flax(path)
    return read_tensors(weights, what="weights of the first stage", how=_HOW)


def imported_state(model: Model, kind: str, params: Any) -> dict[str, Any]:
    """Return the entry of a run's state with weights of other files, under what they are.

    Args:
      model: theirs.
      kind: "ema", a moving average, or "raw", as trained.
      params: NumPy arrays.
    """
    params = jax.tree.map(jnp.asarray, params)
    if kind == "ema":
        return {"ema_params": params}
    return {"params": with_training_params(model.config, params, base_key(0))}


def check_new(out: pathlib.Path) -> None:
    """Refuse a directory that holds a run.

    Raises:
      UsageError: it does.
    """
    if saved_steps(out):
        raise UsageError(f"--out {out} holds a run already: name another directory.")
