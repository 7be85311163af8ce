"""Networks of other projects imported as runs, each with a certificate that can be verified."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ddpm_jax import host_memory
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.file_options import FileOptions
from ddpm_jax.experiments.foreign_models import foreign_config, foreign_params
from ddpm_jax.experiments.loading import load_network
from ddpm_jax.experiments.model_files import open_network
from ddpm_jax.experiments.run_settings import run_settings
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Foreign
from ddpm_jax.files import as_path, check_place
from ddpm_jax.locks import hold
from ddpm_jax.monitoring.results import weights_digest, write_record
from ddpm_jax.tasks.certificates import CERTIFICATE, Digests, check_written_back, make_certificate
from ddpm_jax.tasks.importing import check_new, imported_state

KINDS = ("ema", "raw")  # of weights: their moving average, and as trained
WRITTEN_AT_ONCE = 1 << 26  # bytes of weights, or two of the largest array


class Imported(NamedTuple):
    """An imported model."""

    trained: TrainedModel
    foreign: Foreign
    certificate: dict[str, Any]


def import_model(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    preset: str | None = None,
    fields: Mapping[str, Any] | None = None,
    weights: str | None = None,
    report: Callable[[str], None] = lambda part: None,
) -> Imported:
    """Write a network of another project as a run of step 0, with a certificate beside it.

    Where there is a moving average of the weights, the run has it as its average, and the raw
    weights beside it; otherwise it has the raw weights alone, which every command then takes.

    Args:
      path: a file, a directory, the prefix of a TensorFlow checkpoint, or a name on the hub.
      out: a directory without a run.
      preset: a released model whose settings the files do not say.
      fields: what they do not say, as fields of a config, {"model.num_heads": 4}; of a network over
        latents first_stage.ckpt.
      weights: a key of `KINDS`, to import these alone, which images are made with then.
      report: is called with each part of the work, in words, when it begins.

    Raises:
      UsageError: the files are of no family here, hold what our networks cannot represent exactly,
        or have not these weights; `out` has a run.
      FailureError: a file cannot be read or written; the weights cannot be given back bit for bit.
    """
    out = as_path(out)
    check_place(out, flag="--out", writing=True)
    check_new(out)
    found = open_network(path, FileOptions(preset=preset, fields=fields or {}))
    container, foreign, request = found
    kinds = _kinds(foreign, weights)
    foreign_config(foreign, request)  # what it refuses comes before the first report
    average = "ema" if "ema" in kinds else "raw"
    report(f"reading the {average} weights")
    trained = load_network(found, raw_weights=average == "raw")
    host_memory.give_back()
    model, state, digests = trained.model, {}, {}
    for kind in kinds:
        is_average = kind == average
        if not is_average:
            report(f"reading the {kind} weights")
        params = (
            trained.params if is_average else foreign_params(foreign, model, kind, container.path)
        )
        report(f"comparing the {kind} weights, written back, with the files")
        tensors = check_written_back(foreign, kind, params, model.network)
        weights_sha256 = weights_digest(trained.weights._replace(params=params))
        digests[kind] = Digests(tensors, weights_sha256)
        state |= imported_state(model, kind, params)
    if jax.tree.leaves(trained.weights.frozen):
        state["frozen"] = trained.weights.frozen
    report("making the image of the certificate")
    certificate = make_certificate(container, foreign, request, digests, trained)
    report("writing the run")
    with hold(out, "importing a model into it"):
        check_new(out)
        largest = max(leaf.nbytes for leaf in jax.tree.leaves(state))
        at_once = max(WRITTEN_AT_ONCE, 2 * largest + 1)
        checkpointer = Checkpointer(out, keep_last=1, keep_every=1, bytes_at_once=at_once)
        checkpointer.save(0, state, {}, run_settings(model))
        checkpointer.close()
        write_record(out / CERTIFICATE, certificate)
    return Imported(trained, foreign, certificate)


def _kinds(foreign: Foreign, weights: str | None) -> tuple[str, ...]:
    """Return which weights are imported.

    Raises:
      UsageError: those that are asked for are not there.
    """
    there = tuple(foreign.weights)
    if weights is None:
        return there
    if choose("weights", weights, dict.fromkeys(KINDS, weights)) not in there:
        raise UsageError(f"weights is {weights}: these files have the {there[0]} weights alone.")
    return (weights,)
