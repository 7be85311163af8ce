"""What a first stage makes of held-out images, as pictures: during training and, by `cli.draw`,
after it.

first stage      the images, what they become, of a VAE images drawn from the prior, the latents channel by channel
interpolation    a row between each of some pairs of images, in latent space
codes            of a VQ-VAE: the share of each code, the most used first
walk             of a VAE whose whole latent is two numbers: the images of the plane, at the prior's quantiles
means            of the same: where in the plane the classes lie
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.in_memory import gather
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.distributed import hosts
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.models import Model
from ddpm_jax.files import reporting
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.plotting.grids import grid, save_png, side_by_side
from ddpm_jax.plotting.latent_plots import classes_in_plane, code_usage
from ddpm_jax.randomness import base_key, image_keys, initial_noise
from ddpm_jax.tasks.training_grids import grid_path
from ddpm_jax.training.state import TrainState
from ddpm_jax.variational.quantization import perplexity, usage
from ddpm_jax.variational.traversal import lines, quantile_grid

LATENT_CHANNELS = 4  # that are shown, at most
# rows of an interpolation at most, and images in each between the two originals
PAIRS, STEPS = 6, 9
# images on a side of a walk, as in the paper's figure, and pixels of each at least
SHEET, CELL = 20, 32
COUNTED = 512  # held-out images at most whose codes are counted or means are shown
LEAST_NATS = 0.1  # of KL an image, below which the decoder goes without z
# of the codes that the perplexity comes to, below which the codebook has collapsed
LEAST_SHARE = 0.02


class Drawn(NamedTuple):
    """What was drawn of some weights."""

    pictures: dict[str, np.ndarray]  # name -> uint8 [H, W, C], of those at the top that there are
    # of a VAE the KL in nats an image, of a VQ-VAE the perplexity of its codes
    numbers: dict[str, float]
    warning: str | None  # of a collapse


class Seen(NamedTuple):
    """What an encoder makes of B images."""

    z: Any  # [B, h, w, c], as the decoder takes it
    # [B, h, w, c], what is interpolated: z, of a VQ-VAE the vectors before codes replace them
    between: Any
    kl: Any  # [B], nats
    index: Any  # int32 [B, h, w], codes; () without a codebook


def make_drawing(
    model: Model, *, num_samples: int, seed: int, data_dir: str | None = None
) -> Callable[[Any], Drawn]:
    """Returns draw(params) -> `Drawn`: the same held-out images and the same noise every time.

    Args:
      model: of a first stage.
      num_samples: images shown; fewer where the split has not so many.
      seed: of the images from the prior.
      data_dir: where the data is, if not where the config says.

    Raises:
      UsageError: there is no such split.
    """
    config, stage = model.config, model.stage
    in_plane = _in_plane(model)
    source = load_split(config.data, config.data.test_split, data_dir=data_dir)
    count = min(num_samples, len(source))
    wanted = max(count, min(COUNTED, len(source))) if in_plane or stage.kind == "vq" else count
    held_out = gather(source, np.arange(wanted))

    @jax.jit
    def encode(params: Any, images: Any) -> Seen:
        latent = stage.latent(params, to_model_range(images))
        between, index = (
            (latent.z, ()) if latent.codes is None else (latent.encoded, latent.codes.index)
        )
        return Seen(latent.z, between, jnp.sum(stage.kl(latent), axis=(1, 2, 3)), index)

    @jax.jit
    def decode(params: Any, z: Any) -> Any:
        return to_uint8(stage.image(stage.decoded(params, stage.nearest_codes(params, z))))

    def draw(params: Any) -> Drawn:
        def shown(z: np.ndarray) -> np.ndarray:
            return _in_batches(lambda part: decode(params, part), z, count)

        seen = _in_batches(lambda images: encode(params, images), held_out["image"], count)
        originals = held_out["image"][:count]
        columns = {"original": originals, "reconstruction": shown(seen.z[:count])}
        if stage.kind == "vae":
            keys = image_keys(base_key(seed), jnp.arange(count))
            columns["from the prior"] = shown(np.asarray(initial_noise(keys, seen.z.shape[1:])))
        columns |= latent_images(seen.z[:count], originals.shape)
        pictures = {
            "first stage": side_by_side({name: grid(pixels) for name, pixels in columns.items()})
        }
        if count > 1:
            pictures["interpolation"] = _interpolation(originals, seen.between[:count], shown)
        if in_plane:
            pictures["walk"] = grid(
                shown(quantile_grid(SHEET)[:, None, None]), SHEET, pad=1, min_pixels=CELL
            )
            title = f"means of {wanted} held-out images"
            pictures["means"] = classes_in_plane(seen.z[:, 0, 0], held_out["label"], title=title)
        kl = float(seen.kl[:count].mean())
        if stage.kind != "vq":
            return Drawn(
                pictures,
                {"held_out_kl": kl} if stage.kind == "vae" else {},
                collapse(stage.kind, kl, ()),
            )
        counts = np.asarray(usage(seen.index, stage.num_codes))
        used, found = np.count_nonzero(counts), float(perplexity(counts))
        title = f"perplexity {found:.1f} of {len(counts)} codes, {used} used by {wanted} held-out images"
        pictures["codes"] = code_usage(counts, title=title)
        return Drawn(pictures, {"held_out_perplexity": found}, collapse(stage.kind, kl, counts))

    return draw


def picture_writer(
    model: Model,
    workdir: pathlib.Path,
    writer: MetricWriter,
    say: Callable[[str], None],
    *,
    whole: Callable[[Any], Any] = lambda params: params,
) -> Callable[[int, TrainState], None]:
    """Returns on_sample(step, state), which writes the pictures: `train.num_samples` images in
    them, or all there are.

    Args:
      model: the run's, of a first stage.
      workdir: where the pictures go: the first where a diffusion model's grid would be, the others
        beside it.
      writer: gets the pictures and the numbers.
      say: prints a line for the person who watches: a collapse.
      whole: as in `training_grids.grid_writer`.

    Raises:
      UsageError: there is no such split.
    """
    config = model.config
    draw = make_drawing(model, num_samples=config.train.num_samples, seed=config.seed)

    def on_sample(step: int, state: TrainState) -> None:
        params = hosts.local(whole(state.ema_params))
        if not hosts.is_primary():
            return
        drawn = draw(params)
        # The record first: where the picture is, a resumed run does not draw it again.
        if drawn.numbers:
            writer.write(step, drawn.numbers)
            writer.flush()
        for name, picture in drawn.pictures.items():
            path = grid_path(workdir, step)
            path = path if name == "first stage" else path.with_name(f"{path.stem}_{name}.png")
            with reporting(path):
                save_png(path, picture)
            writer.image(step, name, picture)
        if drawn.warning:
            say(f"step {step}: {drawn.warning}")

    return on_sample


def _in_plane(model: Model) -> bool:
    """Whether the whole latent of an image is two numbers that have a prior."""
    stage, network = model.config.first_stage, model.network
    return (
        stage.kind == "vae"
        and stage.latent_channels == 2
        and network.factor == model.config.data.image_size
    )


def _in_batches(function: Callable[[Any], Any], rows: np.ndarray, size: int) -> Any:
    """The function of all rows on the host, `size` at a time; the last batch is filled up by its
    last row."""
    parts = []
    for start in range(0, len(rows), size):
        part = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
        parts.append(jax.device_get(function(part)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)


def _interpolation(
    originals: np.ndarray, z: np.ndarray, shown: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Rows from the first of each pair of images to the second."""
    pairs = min(PAIRS, len(originals) // 2)
    first, last = (slice(start, 2 * pairs, 2) for start in (0, 1))
    path = np.asarray(lines(z[first], z[last], STEPS))
    images = shown(path.reshape(-1, *z.shape[1:])).reshape(pairs, STEPS, *originals.shape[1:])
    rows = np.concatenate([originals[first, None], images, originals[last, None]], axis=1)
    return grid(rows.reshape(-1, *originals.shape[1:]), STEPS + 2)


def latent_images(z: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Title -> the first channels of latents z [N, h, w, c] as grey images, uint8 of `shape` [N, H,
    W, C].

    Each channel has a scale of its own, from its smallest value in all images, black, to its
    largest, white.
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
            f"the KL is {kl:.2g} nats an image: the decoder goes without z (posterior collapse). "
            "Lower first_stage.beta, or give it kl_warmup_steps or free_nats."
        )
    if kind == "vq" and perplexity(counts) < max(1.5, LEAST_SHARE * len(counts)):
        return (
            f"the perplexity of the codes is {perplexity(counts):.3g} of {len(counts)}: the "
            "codebook has collapsed. Set first_stage.restart_below, with "
            "first_stage.codebook=averages, or take fewer codes."
        )
    return None
