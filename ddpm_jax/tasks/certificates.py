"""Certificates of imported models: that every tensor was read, and read right.

A certificate is `certificate.json` beside an imported model. It has the digest of the tensors that
were read and of the weights made of them, and says that the weights, written back under their old
names, were the very tensors; and what the model makes of one seed, so that another machine can be
held against it.
"""

import hashlib
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.distributed.compilation import options_to_run_once
from ddpm_jax.errors import FailureError
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Foreign, Request, Tensors
from ddpm_jax.files import absolute
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.hub import origin
from ddpm_jax.models.convolution import as_written
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key, image_keys
from ddpm_jax.samplers.loop import Noise
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling

CERTIFICATE = "certificate.json"
STEPS, SEED = 2, 0  # of the image in a certificate
SIZE = 64  # height and width in pixels that it has at most, where the network allows


class Digests(NamedTuple):
    """Digests of one kind of weights."""

    tensors: str  # `tensors_digest` of the tensors, read and written back
    weights: str  # `results.weights_digest` of ours


def tensors_digest(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors as float32, with their names and shapes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name], np.float32)
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def check_written_back(foreign: Foreign, kind: str, params: Mapping[str, Any], network: Any) -> str:
    """Return the digest of the tensors of one kind, after comparing them with what was read.

    Args:
      foreign: the network.
      kind: "raw" or "ema".
      params: what `foreign.read` made of its tensors.
      network: ours.

    Raises:
      FailureError: written under their names again, the parameters are other tensors.
    """
    there, back = foreign.weights[kind], foreign.write(params, network)
    for name in sorted(set(there) | set(back)):
        if name not in back or name not in there or not _is_same(there[name], back[name]):
            raise FailureError(
                f"{name} of the {kind} weights is not the same when it is written back: this is an "
                f"error in the reading of {foreign.family}, and nothing was imported."
            )
    return tensors_digest(back)


def _is_same(there: np.ndarray, back: np.ndarray) -> bool:
    return np.array_equal(np.asarray(there, np.float32), back)


def make_certificate(
    container: Container,
    foreign: Foreign,
    request: Request,
    digests: Mapping[str, Digests],
    trained: TrainedModel,
) -> dict[str, Any]:
    """Return the certificate of an imported model, JSON-able.

    Args:
      container: its files.
      foreign: the network.
      request: what the user said of it.
      digests: of each kind of weights.
      trained: the model.
    """
    weights = {
        kind: {
            "tensors": len(foreign.weights[kind]),
            "parameters": sum(int(np.prod(x.shape)) for x in foreign.weights[kind].values()),
            "sha256": digest.tensors,
            "written_back": "equal",
            "in_the_run": digest.weights,
        }
        for kind, digest in digests.items()
    }
    image = smoke_image(trained, image_size(trained))
    return {
        "family": foreign.family,
        "released_as": foreign.released_as or None,
        "published_parameters": foreign.published or None,
        "source": _source(container),
        "weights": weights,
        "unread": list(foreign.unread),
        "fields": dict(foreign.fields),
        "asked_for": {"fields": dict(request.fields), "preset": request.preset},
        "assumed": {
            name: {"value": assumption.value, "why": assumption.why}
            for name, assumption in foreign.assumed.items()
        },
        "result": {"weights": trained.average, "sha256": trained.sha256},
        "versions": versions(),
    } | ({} if image is None else {"image": image})


def _source(container: Container) -> dict[str, str]:
    """Return where the files are, and which revision of the hub's if they are from there."""
    path = str(absolute(container.path))
    name = origin(path)
    hub = {} if name == path else {"hub": name}
    return {"path": path, "kind": container.kind} | hub


def image_size(trained: TrainedModel) -> dict[str, int]:
    """Return height and width of the image, where they are not those of the training.

    A U-Net over pixels takes images of any size, and a small one passes through all its weights.
    """
    model = trained.model
    if not isinstance(model.network, UNet) or frozen_first_stage(model) is not None:
        return {}
    size = max(SIZE, 2 ** len(model.network.ch_mult))
    return {"height": size, "width": size} if model.image_shape[0] > size else {}


def smoke_image(trained: TrainedModel, size: Mapping[str, int]) -> dict[str, Any] | None:
    """Return how one image is made and what it is like; None for a model that makes none.

    Args:
      trained: the model.
      size: what `image_size` returned when the image was made first.

    Raises:
      FailureError: the image is not finite.
    """
    model = trained.model
    if model.config.objective != "diffusion" or model.conditioning.low_res_factor:
        return None
    settings = Sampling(sampler="ddim", steps=min(STEPS, model.chain.num_timesteps), **size)
    generator = make_generator(trained, settings)
    sampler, inputs = generator.sampler, generator.inputs(np.arange(1))

    def step(params: Any, state: Any, row: Any) -> Any:
        denoiser = generator.denoiser(params, sampler.schedule, inputs)
        with as_written():
            return sampler.step(denoiser, state, row, Noise(None, None))[0]

    # Compiled by itself: before a loop XLA would bring all weights into other layouts, and keep
    # both.
    step = jax.jit(step, compiler_options=options_to_run_once())
    state = sampler.init(generator.start(image_keys(base_key(SEED), np.arange(1)), inputs))
    rows = [jax.tree.map(operator.itemgetter(i), sampler.rows) for i in range(sampler.num_rows)]
    step = step.lower(generator.params, state, rows[0]).compile()
    host_memory.give_back()
    for row in rows:
        state = step(generator.params, state, row)
    x_0 = np.asarray(state.x_t, np.float64)
    if not np.isfinite(x_0).all():
        raise FailureError(
            f"The image that {trained.directory} makes of seed {SEED} is not finite: its weights "
            "are damaged, or it is another model than its files say."
        )
    statistics = {name: float(getattr(x_0, name)()) for name in ("mean", "std", "min", "max")}
    return {"sampler": "ddim", "steps": settings.steps, "seed": SEED} | dict(size) | statistics
