"""Networks of other projects imported as runs, each with a certificate that can be verified."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments.file_options import FileOptions
from ddpm_jax.experiments.foreign_models import foreign_params
from ddpm_jax.experiments.loading import load_network
from ddpm_jax.experiments.model_files import open_network
from ddpm_jax.experiments.run_settings import run_settings
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Foreign
from ddpm_jax.files import as_path, check_place
from ddpm_jax.locks import hold
from ddpm_jax.monitoring.results import write_record
from ddpm_jax.tasks.certificates import CERTIFICATE, check_written_back, make_certificate
from ddpm_jax.tasks.importing import check_new


class Imported(NamedTuple):
    """An imported model."""

    trained: TrainedModel
    foreign: Foreign
    certificate: dict[str, Any]


def import_model(
    path: str | os.PathLike,
    out: str | os.PathLike,
    options: FileOptions | None = None,
) -> Imported:
    """Write a network of another project as a run of step 0, with a certificate beside it.

    Where there is a moving average of the weights, the run has it as its average, and the raw
    weights beside it; otherwise the raw weights stand for the average.

    Args:
      path: a file, a directory, or the prefix of a TensorFlow checkpoint.
      out: a directory without a run.
      options: what the files do not say; of a network over latents the field first_stage.ckpt.

    Raises:
      UsageError: the files are of no family here, or hold what our networks cannot represent
        exactly; `out` has a run.
      FailureError: a file cannot be read or written; the weights cannot be given back bit for bit.
    """
    out = as_path(out)
    check_place(out, flag="--out", writing=True)
    check_new(out)
    found = open_network(path, options)
    container, foreign, request = found
    trained = load_network(found)
    model, state, digests = trained.model, {}, {}
    for kind in foreign.weights:
        is_average = kind == trained.average
        params = trained.params if is_average else foreign_params(foreign, model, kind)
        digests[kind] = check_written_back(foreign, kind, params, model.network)
        state["ema_params" if is_average else "params"] = jax.tree.map(jnp.asarray, params)
    if jax.tree.leaves(trained.weights.frozen):
        state["frozen"] = trained.weights.frozen
    certificate = make_certificate(container, foreign, request, digests, trained)
    with hold(out, "importing a model into it"):
        check_new(out)
        checkpointer = Checkpointer(out, keep_last=1, keep_every=1)
        checkpointer.save(0, state, {}, run_settings(model))
        checkpointer.close()
        write_record(out / CERTIFICATE, certificate)
    return Imported(trained, foreign, certificate)
