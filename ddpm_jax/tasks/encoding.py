"""Encoding picture files into the latents of a first stage, and the file that holds them."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from ddpm_jax.data.layout import pictures_in
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import latent_file
from ddpm_jax.evaluation.coding import Latents, encode
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import as_path, reporting
from ddpm_jax.limits import MAX_BATCH, MAX_SEED
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks import photos

PICTURE = "PICTURE"  # what messages call a file that is encoded
MAX_SIZE = 16_384  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding(Settings):
    """How pictures are read and encoded."""

    size: int | None = setting(
        None,
        "Height and width to bring the pictures to; by default those of training.",
        lower=1,
        upper=MAX_SIZE,
    )
    keep_size: bool = setting(
        False, "Leave the pictures as large as they are, but for what the network cannot divide."
    )
    sample: bool = setting(False, "Draw from a VAE's posterior instead of taking its mean.")
    seed: int | None = setting(
        None,
        "With --sample: picture i's draw is of the seed and i (default: 0).",
        lower=0,
        upper=MAX_SEED,
    )
    batch_size: int = setting(16, "Pictures at a time, over all devices.", lower=1, upper=MAX_BATCH)

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        if self.size is not None and self.keep_size:
            raise UsageError(
                "size brings pictures to a size and keep_size leaves them theirs: give one of them."
            )
        if self.seed is not None and not self.sample:
            raise UsageError("seed is of the draws of sample: give that too, or leave it out.")


def encode_pictures(
    trained: TrainedModel, paths: Sequence[pathlib.Path], settings: Encoding
) -> Latents:
    """Return the latents of picture files, in their order.

    Raises:
      UsageError: a size that the network's factor does not divide; a file that is missing, no
        picture, too small, or of another shape than the others; draws from a first stage without a
        posterior.
      FailureError: a latent that is not finite.
    """
    stage, seed = trained.model.stage, (settings.seed or 0) if settings.sample else None
    if settings.sample and stage.kind != "vae":
        raise UsageError(
            f"sample draws from a posterior, which a first stage of the kind {stage.kind!r} does "
            "not have."
        )
    size = _read_size(trained.model, settings)
    for path in paths:
        photos.check_photo(PICTURE, path, size)
    pictures = _read(trained.model, paths, size, keep_size=settings.keep_size)
    batches = encode(stage, trained.params, pictures, batch_size=settings.batch_size, seed=seed)
    return _concatenate(list(batches))


def write_latents(
    out: pathlib.Path, found: Latents, trained: TrainedModel, *, names: Sequence[str]
) -> None:
    """Write latents with the facts a decoder needs; see `evaluation.latent_file`.

    Raises:
      FailureError: the file cannot be written.
    """
    latent_file.write(
        out,
        found,
        names=names,
        kind=trained.model.stage.kind,
        first_stage=trained.sha256,
        made_by=describe(trained),
    )


def find_pictures(places: Sequence[str]) -> list[pathlib.Path]:
    """Return the named files, and those in named directories in alphabetical order.

    Raises:
      UsageError: nothing is named, or a directory without pictures.
    """
    if not places:
        raise UsageError(
            "No picture is named: name files or directories of some, as in photo.jpg photos/."
        )
    paths = []
    for text in places:
        place = as_path(text)
        with reporting(place, "read"):
            inside = pictures_in(place) if place.is_dir() else None
        paths += [place] if inside is None else [place / name for name in inside]
    return paths


def describe(trained: TrainedModel) -> str:
    """Return the origin of weights in words."""
    return f"{trained.origin}, step {trained.step}, {trained.average} weights"


def _read_size(model: FirstStageModel, settings: Encoding) -> int:
    """Return the size to resize pictures to, or their least size if they keep it."""
    factor = model.network.factor
    size = factor if settings.keep_size else settings.size or model.image_shape[0]
    if size % factor:
        near = max(1, round(size / factor)) * factor
        raise UsageError(
            f"size is {size}, but this network divides by {factor}: give a multiple of it, "
            f"{near} say."
        )
    return size


def _read(
    model: FirstStageModel, paths: Sequence[pathlib.Path], size: int, *, keep_size: bool
) -> Iterator[np.ndarray]:
    """Read one picture after the other: uint8 [H, W, C] of one shape."""
    first, channels = None, model.image_shape[2]
    for path in counted(paths, "encoding", len(paths), unit="picture"):
        if keep_size:
            picture = photos.read_whole_photo(PICTURE, path, multiple=size, channels=channels)
        else:
            picture = photos.read_photo(PICTURE, path, (size, size, channels))
        first = picture.shape if first is None else first
        if picture.shape != first:
            (height, width, _), (h, w, _) = first, picture.shape
            raise UsageError(
                f"{PICTURE}: {path} is {w}x{h} and {paths[0]} {width}x{height}, but the latents of "
                "one file are of one size: encode them one by one, or leave out keep_size."
            )
        yield picture


def _concatenate(batches: Sequence[Latents]) -> Latents:
    return Latents(
        *(
            None if parts[0] is None else np.concatenate(parts)
            for parts in zip(*batches, strict=True)
        )
    )
