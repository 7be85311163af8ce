"""Decoding a file of latents into picture files, by the first stage that made them."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import latent_file
from ddpm_jax.evaluation.coding import decode
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.limits import MAX_BATCH
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.plotting.grids import grid, save_png
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.encoding import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding(Settings):
    """How latents are decoded."""

    batch_size: int = setting(16, "Pictures at a time, over all devices.", lower=1, upper=MAX_BATCH)


def decode_file(
    trained: TrainedModel,
    path: str,
    arrays: latent_file.Arrays,
    settings: Decoding,
    out: pathlib.Path,
) -> int:
    """Decode the latents in a file and write the pictures; return their number.

    Args:
      trained: the first stage.
      path: of the file.
      arrays: its contents, from `latent_file.read`. settings: how many at a time.
      out: a directory for a picture each, or the name of a PNG for one sheet.

    Raises:
      UsageError: latents of another first stage, or none that it can decode; a picture that exists
        already.
      FailureError: a picture that is not finite, or cannot be written.
    """
    latent_file.check_made_by(path, arrays, first_stage=trained.sha256, what=describe(trained))
    z = latents_in(trained, path, arrays)
    places = _places(out, latent_file.picture_names(arrays), len(z))
    images = counted(_images(trained, z, settings), "decoding", len(z), unit="picture")
    if len(places) < len(z):
        _save(out, grid(np.stack(list(images))))
    else:
        for place, image in zip(places, images, strict=True):
            _save(place, image)
    return len(z)


def latents_in(trained: TrainedModel, path: str, arrays: latent_file.Arrays) -> np.ndarray:
    """Return the latents in a file as the decoder takes them, float32 [N, h, w, c].

    Raises:
      UsageError: there are none that the decoder takes.
    """
    is_vq = trained.model.stage.kind == "vq"
    codebook = np.asarray(trained.params["codebook"]) if is_vq else None
    channels = trained.model.network.latent_channels
    return latent_file.decodable(path, arrays, channels=channels, codebook=codebook)


def _images(trained: TrainedModel, z: np.ndarray, settings: Decoding) -> Iterator[np.ndarray]:
    for batch in decode(trained.model.stage, trained.params, z, batch_size=settings.batch_size):
        yield from batch


def _places(out: pathlib.Path, names: Sequence[str], count: int) -> list[pathlib.Path]:
    """Return the paths of the pictures: one file each, or the one of a sheet.

    Raises:
      UsageError: a file exists already.
    """
    if out.suffix.lower() == ".png":
        places = [out]
    else:
        stems = list(names) if len(names) == count else [""] * count
        if len({*stems, ""}) <= count:  # two of one name, or one without
            stems = [f"{i:05d}_{stem}".rstrip("_") for i, stem in enumerate(stems)]
        places = [out / f"{stem}.png" for stem in stems]
    for place in places:
        with reporting(place, "read"):
            if place.exists():
                raise UsageError(
                    f"--out: {place} is there already: remove it, or choose another place."
                )
    return places


def _save(place: pathlib.Path, picture: np.ndarray) -> None:
    with reporting(place):
        save_png(place, picture)
