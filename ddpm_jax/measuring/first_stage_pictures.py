"""Pictures that show a first stage on held-out images, as arrays.

first stage the images, their reconstructions, for a VAE images drawn from the prior, and the
channels of the latents interpolation    a row between each of some pairs of images, in latent space
codes            of a VQ-VAE: the share of each code, the most used first walk             of a VAE
whose whole latent is two numbers: the images of the plane, at the prior's
                 quantiles
means            of the same: where in the plane the classes lie

Their files are `first_stage_picture_files`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.in_memory import gather
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.plotting.grids import grid, side_by_side
from ddpm_jax.plotting.latent_plots import classes_in_plane, code_usage
from ddpm_jax.randomness import base_key, image_keys, initial_noise
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

Show = Callable[[np.ndarray], np.ndarray]  # latents -> images uint8


class Drawn(NamedTuple):
    """The pictures of some weights."""

    pictures: dict[str, np.ndarray]  # name -> uint8 [H, W, C], of those at the top that there are
    # for a VAE the KL in nats per image, for a VQ-VAE the perplexity of its codes
    numbers: dict[str, float]
    warning: str | None  # of a collapse


class Encoded(NamedTuple):
    """What the encoder gives for B images."""

    z: Any  # [B, h, w, c], as the decoder takes it
    # [B, h, w, c], to interpolate: z, for a VQ-VAE the vectors before quantisation
    between: Any
    kl: Any  # [B], nats
    index: Any  # int32 [B, h, w], codes; () without a codebook


def make_drawing(
    model: FirstStageModel, *, num_samples: int, seed: int, data_dir: str | None = None
) -> Callable[[Any], Drawn]:
    """Return draw(params) -> `Drawn`: the same held-out images and the same noise every time.

    Args:
      model: a first stage.
      num_samples: images shown; fewer if the split is smaller.
      seed: of the images from the prior.
      data_dir: where the data is, if not where the config says.

    Raises:
      UsageError: there is no such split.
    """
    data = model.config.data
    source = load_split(data, data.test_split, data_dir=data_dir)
    count = min(num_samples, len(source))
    counted = _is_plane(model) or model.stage.kind == "vq"
    wanted = max(count, min(COUNTED, len(source))) if counted else count
    return _Drawing(model, gather(source, np.arange(wanted)), count, seed)


class _Drawing:
    """Held-out images, and the programs that encode and decode `count` of them at a time."""

    def __init__(
        self, model: FirstStageModel, held_out: dict[str, np.ndarray], count: int, seed: int
    ):
        self._stage, self._is_plane = model.stage, _is_plane(model)
        self._held_out, self._count, self._seed = held_out, count, seed
        self._encode, self._decode = jax.jit(self._encode_batch), jax.jit(self._decode_batch)

    def __call__(self, params: Any) -> Drawn:
        """Draw some weights."""

        def show(z: np.ndarray) -> np.ndarray:
            return _in_batches(lambda part: self._decode(params, part), z, self._count)

        encoded = _in_batches(
            lambda images: self._encode(params, images), self._held_out["image"], self._count
        )
        originals = self._held_out["image"][: self._count]
        pictures = {"first stage": self._first_stage(originals, encoded, show)}
        if self._count > 1:
            between = encoded.between[: self._count]
            pictures["interpolation"] = _interpolation(originals, between, show)
        if self._is_plane:
            walk = show(quantile_grid(SHEET)[:, None, None])
            pictures["walk"] = grid(walk, SHEET, pad=1, min_pixels=CELL)
            pictures["means"] = self._means(encoded)
        kl = float(encoded.kl[: self._count].mean())
        if self._stage.kind != "vq":
            numbers = {"held_out_kl": kl} if self._stage.kind == "vae" else {}
            return Drawn(pictures, numbers, collapse(self._stage.kind, kl, ()))
        counts = np.asarray(usage(encoded.index, self._stage.num_codes))
        found = float(perplexity(counts))
        pictures["codes"] = self._codes(counts, found)
        return Drawn(pictures, {"held_out_perplexity": found}, collapse("vq", kl, counts))

    def _encode_batch(self, params: Any, images: Any) -> Encoded:
        latent = self._stage.latent(params, to_model_range(images))
        between, index = (
            (latent.z, ()) if latent.codes is None else (latent.encoded, latent.codes.index)
        )
        return Encoded(latent.z, between, jnp.sum(self._stage.kl(latent), axis=(1, 2, 3)), index)

    def _decode_batch(self, params: Any, z: Any) -> Any:
        stage = self._stage
        return to_uint8(stage.image(stage.decoded(params, stage.nearest_codes(params, z))))

    def _first_stage(self, originals: np.ndarray, encoded: Encoded, show: Show) -> np.ndarray:
        """Draw originals, reconstructions, images from the prior, and latents."""
        z = encoded.z[: self._count]
        columns = {"original": originals, "reconstruction": show(z)}
        if self._stage.kind == "vae":
            keys = image_keys(base_key(self._seed), jnp.arange(self._count))
            columns["from the prior"] = show(np.asarray(initial_noise(keys, z.shape[1:])))
        columns |= latent_images(z, originals.shape)
        return side_by_side({name: grid(pixels) for name, pixels in columns.items()})

    def _means(self, encoded: Encoded) -> np.ndarray:
        title = f"means of {len(encoded.z)} held-out images"
        return classes_in_plane(encoded.z[:, 0, 0], self._held_out["label"], title=title)

    def _codes(self, counts: np.ndarray, found: float) -> np.ndarray:
        title = (
            f"perplexity {found:.1f} of {len(counts)} codes, {np.count_nonzero(counts)} used by "
            f"{len(self._held_out['image'])} held-out images"
        )
        return code_usage(counts, title=title)


def _is_plane(model: FirstStageModel) -> bool:
    """Return whether the whole latent of an image is two numbers that have a prior."""
    stage, network = model.config.first_stage, model.network
    return (
        stage.kind == "vae"
        and stage.latent_channels == 2
        and network.factor == model.config.data.image_size
    )


def _in_batches(function: Callable[[Any], Any], rows: np.ndarray, size: int) -> Any:
    """Apply a function to all rows, `size` at a time; the last batch repeats its last row."""
    parts = []
    for start in range(0, len(rows), size):
        part = rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
        parts.append(jax.device_get(function(part)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)


def _interpolation(originals: np.ndarray, z: np.ndarray, show: Show) -> np.ndarray:
    """Draw rows from the first of each pair of images to the second."""
    pairs = min(PAIRS, len(originals) // 2)
    first, last = (slice(start, 2 * pairs, 2) for start in (0, 1))
    path = np.asarray(lines(z[first], z[last], STEPS))
    images = show(path.reshape(-1, *z.shape[1:])).reshape(pairs, STEPS, *originals.shape[1:])
    rows = np.concatenate([originals[first, None], images, originals[last, None]], axis=1)
    return grid(rows.reshape(-1, *originals.shape[1:]), STEPS + 2)


def latent_images(z: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the first channels of latents z [N, h, w, c] as grey images by title.

    The images are uint8 of `shape` [N, H, W, C]. Each channel has a scale of its own, from its
    smallest value in all images, black, to its largest, white.
    """
    low, high = (reduce(z, axis=(0, 1, 2), keepdims=True) for reduce in (np.min, np.max))
    grey = np.round(255 * (z - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    factor = shape[1] // z.shape[1]
    enlarged = grey.repeat(factor, axis=1).repeat(factor, axis=2)
    channels = range(min(z.shape[-1], LATENT_CHANNELS))
    return {f"latent {c + 1}": enlarged[..., c, None].repeat(shape[-1], axis=-1) for c in channels}


def collapse(kind: str, kl: float, counts: np.ndarray) -> str | None:
    """Return a sentence if the latents hold next to nothing of the images, else None.

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
