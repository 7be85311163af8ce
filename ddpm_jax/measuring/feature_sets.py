"""Features of a set of images, computed in one pass for all metrics that are asked for.

A set is kept as its features where a metric needs the elements, otherwise as mean and covariance.
Sets that are read again and again, references above all, are kept by `feature_cache`. Published
statistics, an NPZ file of mean and covariance, stand for a set whose images are not there.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.archives import BadArchive, Header, npz_index, read_npz_array
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.features import Extracted, FeatureNetwork
from ddpm_jax.evaluation.frechet import GaussianAccumulator, gaussian_statistics
from ddpm_jax.files import absolute, file_sha256
from ddpm_jax.measuring.feature_cache import FeatureCache
from ddpm_jax.measuring.image_sets import ImageSet
from ddpm_jax.monitoring.progress import Counter

# names of mean and covariance in published files: TTUR, pytorch-fid, clean-fid, OpenAI and EDM
# have the first pair
_STATISTICS = (("mu", "sigma"), ("mean", "cov"), ("mean", "covariance"), ("m", "s"))
_ELEMENTS = ("pool_3", "features", "reps")  # of files that hold features: score_sde, dgm-eval
_SYMMETRY = 1e-3  # of a covariance, relative to its largest number: some were saved in float16


class Needs(NamedTuple):
    """What metrics want of a set besides mean and covariance."""

    elements: bool = False  # the features themselves
    logits: bool = False

    def __or__(self, other: "Needs") -> "Needs":  # type: ignore[override]
        return Needs(self.elements or other.elements, self.logits or other.logits)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A set as metrics see it.

    Attributes:
      record: what a result says of the set.
      dims: D.
      count: N; None where a file of statistics does not say.
      gaussian: mean [D] and covariance [D, D], float64; None where there are features.
      features: float32 [N, D]; None where only mean and covariance were kept.
      logits: float32 [N, K]; None without.
      labels: int32 [N]; None without classes.
      num_classes: 0 without.
    """

    record: dict[str, Any]
    dims: int
    count: int | None = None
    gaussian: tuple[np.ndarray, np.ndarray] | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    num_classes: int = 0

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean [D] and covariance [D, D], float64.

        Raises:
          UsageError: fewer than 2 elements.
        """
        return self.gaussian or gaussian_statistics(self.features)


def compute_features(
    images: ImageSet,
    rows: np.ndarray,
    network: FeatureNetwork,
    needs: Needs,
    *,
    batch_size: int,
    cache: FeatureCache | None = None,
) -> FeatureSet:
    """Compute the features of some rows of a set, each process its share of them.

    Args:
      images: the set.
      rows: int [n].
      network: what computes them.
      needs: what is kept.
      batch_size: images at a time in this process.
      cache: where they are looked up and kept; None for neither.

    Raises:
      UsageError: they need more memory than there is.
      FailureError: an image that cannot be read; features that are not finite.
      Stopped: by a signal or a time limit.
    """
    check_memory(len(rows), network, needs)
    cache = None if network.is_function else cache
    key = _key(images, rows, network)
    kept = cache.find(key, needs.elements, needs.logits) if cache else None
    if not all(hosts.gather_json(kept is not None)):
        kept = _computed(images, rows, network, needs, batch_size=batch_size)
        if cache:
            cache.keep(key, kept)
    classes = images.source.num_classes
    return FeatureSet(
        images.record | {"count": len(rows), "images_sha256": kept.pop("sha256")},
        network.dims,
        len(rows),
        (kept["mean"], kept["covariance"]) if "mean" in kept else None,
        kept.get("features"),
        kept.get("logits"),
        kept["labels"] if classes else None,
        classes,
    )


def check_memory(count: int, network: FeatureNetwork, needs: Needs, besides: int = 0) -> None:
    """Refuse features that do not fit into memory, before anything is computed.

    Raises:
      UsageError: see above.
    """
    numbers = count * (network.dims * needs.elements + network.num_classes * needs.logits)
    numbers += 0 if needs.elements else 4 * network.dims**2  # two covariances in float64
    host_memory.check(
        4 * numbers + besides,
        what=f"{count:,} examples of {network.dims:,} features",
        remedy="take fewer images, or a network with fewer features",
    )


def read_statistics(path: pathlib.Path, dims: int | None = None) -> FeatureSet | None:
    """Read mean and covariance, or the features of score_sde and dgm-eval, from an NPZ file.

    Args:
      path: of the file.
      dims: D of the network whose features are compared with them; None for any.

    Returns:
      The set; None for a file that has none of these.

    Raises:
      UsageError: they are not finite, not symmetric, or of another number of features.
      FailureError: the file cannot be read.
    """
    try:
        members = npz_index(path)
        pair = next((p for p in _STATISTICS if set(p) <= set(members)), None)
        name = next((name for name in _ELEMENTS if name in members), None)
        wanted = pair or ((name,) if name else ())
        arrays = [
            read_npz_array(path, one, Header(members[one].dtype, members[one].shape))
            for one in wanted
        ]
    except (BadArchive, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as an NPZ file ({error}): name another."
        ) from error
    if not arrays:
        return None
    if any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in arrays):
        raise UsageError(
            f"{path} holds statistics that are not finite numbers: take an intact copy of it."
        )
    found = arrays[0].shape[-1] if arrays[0].ndim else 0
    if arrays[0].ndim != (1 if pair else 2) or (pair and arrays[1].shape != (found, found)):
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise UsageError(f"{path} holds {' and '.join(wanted)} of shapes {shapes}: name another.")
    if dims is not None and dims != found:
        raise UsageError(
            f"{path} is of {found} features, and the network computes {dims}: take the network "
            "that the file was made with."
        )
    record = {"kind": "statistics", "source": str(absolute(path)), "sha256": file_sha256(path)}
    if not pair:
        features = arrays[0].astype(np.float32)
        record |= {"array": name, "count": len(features)}
        return FeatureSet(record, found, len(features), features=features)
    mean, covariance = (array.astype(np.float64) for array in arrays)
    if np.abs(covariance - covariance.T).max() > _SYMMETRY * np.abs(covariance).max():
        raise UsageError(f"{path}: {pair[1]} is not symmetric, so it is no covariance.")
    return FeatureSet(record, found, gaussian=(mean, covariance))


def _key(images: ImageSet, rows: np.ndarray, network: FeatureNetwork) -> dict[str, Any]:
    """Return what decides the features, as JSON can hold it."""
    return {
        "images": images.fingerprint,
        "rows": hashlib.sha256(np.asarray(rows, "<i8").tobytes()).hexdigest(),
        "network": {"name": network.name, "dims": network.dims, **network.record},
    }


def _computed(
    images: ImageSet, rows: np.ndarray, network: FeatureNetwork, needs: Needs, *, batch_size: int
) -> dict[str, Any]:
    """Return the arrays that are kept of a set, by name."""
    digests, labels, accumulator = [], [], GaussianAccumulator()
    # Only one process can add up what it has seen alone.
    elements = needs.elements or jax.process_count() > 1

    def batches() -> Iterator[Extracted]:
        mine = rows[hosts.share(len(rows))]
        with Counter(f"{network.name} features", len(mine), unit="image") as counter:
            for pixels, of_batch in images.batches(mine, batch_size):
                interrupt.check()
                extracted = network.extract(pixels)
                if not np.isfinite(extracted.features).all():
                    raise FailureError(
                        f"The features of {images.record.get('source', 'these images')} by "
                        f"{network.name} are not finite: its weights are damaged, or its function "
                        "fails on some image."
                    )
                digests.append(_digests(pixels))
                labels.append(of_batch)
                counter.add(len(pixels))
                yield extracted

    features, logits = [], []
    for extracted in batches():
        if elements:
            features.append(np.asarray(extracted.features, np.float32))
        else:
            accumulator.add(extracted.features)
        if needs.logits:
            logits.append(np.asarray(extracted.logits, np.float32))
    kept: dict[str, Any] = {
        "labels": hosts.gather(labels, len(rows)),
        "sha256": _common_digest(images, hosts.gather(digests, len(rows))),
    }
    if elements:
        kept["features"] = hosts.gather(features, len(rows))
    else:
        kept["mean"], kept["covariance"] = accumulator.statistics()
    if needs.logits:
        kept["logits"] = hosts.gather(logits, len(rows))
    return kept


def _digests(pixels: np.ndarray) -> np.ndarray:
    """Return the SHA-256 of every image, uint8 [B, 32]."""
    found = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in pixels]
    return np.frombuffer(b"".join(found), np.uint8).reshape(len(pixels), 32)


def _common_digest(images: ImageSet, digests: np.ndarray) -> str:
    """Return the SHA-256 of shape and images, each by its own, in their order."""
    shape = "x".join(map(str, images.image_shape))
    return hashlib.sha256(shape.encode() + digests.tobytes()).hexdigest()
