"""Networks in the files of other projects as models of ours: their config, and their weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.building import DTYPES, build
from ddpm_jax.experiments.codec import FrozenFirstStage
from ddpm_jax.experiments.config import check_field, from_dict
from ddpm_jax.experiments.datasets import check_data
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Foreign, Request
from ddpm_jax.families.recognition import Recognised
from ddpm_jax.interop.pipeline_params import placed
from ddpm_jax.interop.renaming import OtherNetwork
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.variational.latent_space import Frozen

# Groups of the config that are of a network, its process, or the data that it is evaluated on.
_GROUPS = (
    "data", "diffusion", "model", "dit", "linear_unet", "edm_unet", "condition", "first_stage",
    "scheduler",
)  # fmt: skip


def foreign_config(foreign: Foreign, request: Request) -> ConfigDict:
    """Return the config of a network: what its files say, what is assumed, what the user says.

    Raises:
      UsageError: the user names no field of a network or its data, says something else than the
        files, a size of images that their network does not have, or data that there are not.
    """
    for name, value in request.fields.items():
        check_field(name, "the request")
        if name.rpartition(".")[0] not in _GROUPS and name not in foreign.fields:
            raise UsageError(
                f"{name} is of training, and says nothing of the network in the files or of its "
                "data: leave it out."
            )
        if name in foreign.fields and FIELDS[name].fit(value) != foreign.fields[name]:
            raise UsageError(
                f"{name} is {foreign.fields[name]} by the files, and {value} is asked for: "
                "leave it out."
            )
    assumed = {name: assumption.value for name, assumption in foreign.assumed.items()}
    fields = assumed | dict(foreign.fields) | dict(request.fields)
    _check_size(fields, request)
    _check_classes(fields, request)
    usual = FIELDS["train.sample_steps"].default
    steps = min(usual, fields.get("diffusion.num_timesteps", usual))
    fields = {"train.sample_steps": steps} | fields
    fields = {"data.name": "folder", "data.flip": False} | fields
    config = from_dict(fields, source=foreign.family)
    check_data(config.data)
    return config


def _check_size(fields: Mapping[str, Any], request: Request) -> None:
    """Refuse a size of images that a network of so many levels cannot halve so often.

    Without this the advice would be to change the levels, which are the files'.
    """
    size, halvings = fields["data.image_size"], len(fields.get("model.ch_mult", "-")) - 1
    stride = 2**halvings
    if "data.image_size" in request.fields and size % stride:
        below = size // stride * stride
        near = f"{below} or {below + stride}" if below else f"{stride}"
        raise UsageError(
            f"data.image_size is {size}, and the network in the files halves images {halvings} "
            f"times: give a multiple of {stride}, as {near}."
        )


def _check_classes(fields: Mapping[str, Any], request: Request) -> None:
    """Refuse a null class of a network without classes, where nothing would read it."""
    name = "condition.null_class"
    if name in request.fields and not fields.get("condition.num_classes"):
        raise UsageError(
            f"{name} is {request.fields[name]}, and the network in the files has no classes: leave "
            "it out."
        )


def foreign_params(
    foreign: Foreign, model: Model, kind: str, source: pathlib.Path | None = None
) -> dict[str, Any]:
    """Read the weights of one kind, "raw" or "ema": NumPy, float32.

    Raises:
      UsageError: they are not those of the model's network, or not finite; `source` is named.
    """
    try:
        return foreign.read(foreign.weights[kind], model.network)
    except OtherNetwork as error:
        if not foreign.config:
            raise
        raise UsageError(
            f"{foreign.config} is not the config of the {kind} weights there. {error.what}: put "
            "the file in its place that these weights were saved with."
        ) from error
    except UsageError as error:
        raise UsageError(f"{source}: {error}" if source else str(error)) from error


def kind_of_weights(foreign: Foreign, *, raw_weights: bool = False) -> str:
    """Return which weights are read: the average where there is one, unless others are asked for.

    Raises:
      UsageError: the raw ones are asked for, and the files have the average alone.
    """
    if not raw_weights:
        return "ema" if "ema" in foreign.weights else "raw"
    if "raw" not in foreign.weights:
        raise UsageError("raw_weights: these files have the average of the weights alone.")
    return "raw"


def load_foreign(
    found: Recognised,
    config: ConfigDict,
    *,
    first_stage: TrainedModel | None = None,
    dtype: str | None = None,
    raw_weights: bool = False,
) -> TrainedModel:
    """Read a network of another project as a model.

    Args:
      found: its files, as `recognition.recognise` found them.
      config: of the network: `foreign_config`.
      first_stage: the one of a network over latents, which these files do not have.
      dtype: of the computation, a key of `DTYPES`; None for float32.
      raw_weights: leave the moving average, where there is one.

    Raises:
      UsageError: as `foreign_params` and `kind_of_weights`; a config that cannot
        be built.
    """
    container, foreign, _ = found
    if dtype is not None:
        choose("compute dtype", dtype, DTYPES)
        config.model.dtype = dtype
    kind = kind_of_weights(foreign, raw_weights=raw_weights)
    stage, frozen = None, ()
    if first_stage is not None:
        stage = FrozenFirstStage(first_stage.model, first_stage.sha256)
        frozen = Frozen(first_stage.params, np.float32(config.first_stage.latent_scale or 1.0))
    model = build(config, stage)
    weights = Weights(foreign_params(foreign, model, kind, container.path), frozen)
    sha256 = weights_digest(weights)
    placed(weights.params, jnp.asarray)  # each array on the host is let go before the next
    weights = weights._replace(frozen=jax.tree.map(jnp.asarray, weights.frozen))
    return TrainedModel(
        model,
        weights,
        step=0,
        average=kind,
        sha256=sha256,
        directory=container.path,
        raw_is_chosen=raw_weights,
    )
