"""What training a first stage shows: held-out images, what they become, their latents, images drawn from the prior."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.cli.data import load_split
from ddpm_jax.cli.experiment import Experiment
from ddpm_jax.cli.grids import grid_path
from ddpm_jax.data import pipeline
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.files import reporting
from ddpm_jax.plotting.images import grid, save_png, side_by_side
from ddpm_jax.samplers.randomness import image_keys, initial_noise
from ddpm_jax.training import hosts
from ddpm_jax.training.metrics import MetricWriter
from ddpm_jax.training.randomness import base_key
from ddpm_jax.training.state import TrainState
from ddpm_jax.variational.quantization import perplexity, usage

LATENT_CHANNELS = 4  # that are shown, at most
LEAST_NATS = 0.1  # of KL an image, below which the decoder goes without z
LEAST_SHARE = 0.02  # of the codes that the perplexity comes to, below which the codebook has collapsed


def picture_writer(
    experiment: Experiment,
    workdir: pathlib.Path,
    writer: MetricWriter,
    say: Callable[[str], None],
    *,
    whole: Callable[[Any], Any] = lambda params: params,
) -> Callable[[int, TrainState], None]:
    """Returns on_sample(step, state): the same held-out images every time, `train.num_samples` of them or all.

    Args:
      experiment: the run's, of a first stage.
      workdir: where the pictures go.
      writer: gets the picture; of a VAE the KL, of a VQ-VAE the perplexity of its codes, over these images.
      say: prints a line for the person who watches: a collapse.
      whole: as in `grids.grid_writer`.

    Raises:
      UsageError: there is no such split.
    """
    config, stage = experiment.config, experiment.first_stage
    source = load_split(config.data, config.data.test_split)
    count = min(config.train.num_samples, len(source))
    originals = next(pipeline.eval_batches(source, batch_size=count, num_images=count))[0]["image"]

    @jax.jit
    def become(params):
        latent = stage.latent(params, to_model_range(originals))
        shown = [latent.z]
        if stage.kind == "vae":
            keys = image_keys(base_key(config.seed), jnp.arange(count))
            shown.append(initial_noise(keys, latent.z.shape[1:]))
        images = [to_uint8(stage.image(stage.decoded(params, z))) for z in shown]
        counts = () if latent.codes is None else usage(latent.codes.index, stage.num_codes)
        return images, latent.z, jnp.sum(stage.kl(latent)) / count, counts

    def on_sample(step: int, state: TrainState) -> None:
        params = hosts.local(whole(state.ema_params))
        if not hosts.is_first():
            return
        images, z, kl, counts = jax.device_get(become(params))
        pictures = dict(zip(("original", "reconstruction", "from the prior"), (originals, *images), strict=False))
        pictures |= latent_images(z, originals.shape)
        picture = side_by_side({name: grid(pixels) for name, pixels in pictures.items()})
        with reporting(grid_path(workdir, step)):
            save_png(grid_path(workdir, step), picture)
        writer.image(step, "first stage", picture)
        if stage.kind == "vae":
            writer.write(step, {"held_out_kl": float(kl)})
        if stage.kind == "vq":
            writer.write(step, {"held_out_perplexity": float(perplexity(counts))})
        warning = collapse(stage.kind, float(kl), counts)
        if warning:
            say(f"step {step}: {warning}")

    return on_sample


def latent_images(z: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Title -> the first channels of latents z [N, h, w, c] as grey images, uint8 of `shape` [N, H, W, C].

    Each channel has a scale of its own, from its smallest value in all images, black, to its largest, white.
    """
    low, high = (reduce(z, axis=(0, 1, 2), keepdims=True) for reduce in (np.min, np.max))
    grey = np.round(255 * (z - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    factor = shape[1] // z.shape[1]
    enlarged = grey.repeat(factor, axis=1).repeat(factor, axis=2)
    channels = range(min(z.shape[-1], LATENT_CHANNELS))
    return {f"latent {c + 1}": enlarged[..., c, None].repeat(shape[-1], axis=-1) for c in channels}


def collapse(kind: str, kl: float, counts: np.ndarray) -> str | None:
    """A sentence if the latents say next to nothing of the images, else None.

    Args:
      kind: of the first stage.
      kl: nats an image, of a VAE.
      counts: int [K], how often each code was chosen, of a VQ-VAE.
    """
    if kind == "vae" and kl < LEAST_NATS:
        return (
            f"the KL is {kl:.2g} nats an image: the decoder goes without z (posterior collapse). Lower "
            "first_stage.beta, or give it kl_warmup_steps or free_nats."
        )
    if kind == "vq" and perplexity(counts) < max(1.5, LEAST_SHARE * len(counts)):
        return (
            f"the perplexity of the codes is {perplexity(counts):.3g} of {len(counts)}: the codebook has collapsed. "
            "Set first_stage.restart_below, with first_stage.codebook=averages, or take fewer codes."
        )
    return None
