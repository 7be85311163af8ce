"""Features and statistics of sets of images on disk, under what decides them.

An entry is an NPZ file whose name is the SHA-256 of the images' fingerprint, the rows, the network
and its weights, the versions and the device. It holds these facts too: one that does not repeat
them, or is damaged, is not used and is replaced. Entries appear whole, by a rename, so several
processes may read and write at once; the last writer wins, and all of them write the same. Any
entry may be deleted at any time.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax import __version__
from ddpm_jax.archives import BadArchive, read_npz
from ddpm_jax.distributed import hosts
from ddpm_jax.evaluation.frechet import gaussian_statistics
from ddpm_jax.files import as_path, is_refusal, read_file, user_cache, write_atomically
from ddpm_jax.monitoring.results import machine

LARGEST = 2**30  # bytes of an entry: a set with larger features is not kept
_DECIDES = "decides"


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """A directory of entries."""

    directory: Any

    def find(
        self, decides: Mapping[str, Any], elements: bool, logits: bool
    ) -> dict[str, Any] | None:
        """Return the arrays of an entry that holds what is needed; None if there is none.

        Args:
          decides: what decides the features.
          elements: whether the features themselves are needed, not only mean and covariance.
          logits: whether logits are.
        """
        if not _can_be_kept(decides):
            return None
        text = _text(decides)
        try:
            found = read_npz(read_file(self._path(text)))
        except (BadArchive, OSError):
            return None
        if str(found.pop(_DECIDES, "")) != text or not {"labels", "sha256"} <= set(found):
            return None
        if (elements and "features" not in found) or (logits and "logits" not in found):
            return None
        kept: dict[str, Any] = found | {"sha256": str(found["sha256"])}
        if not elements and "features" in found:
            kept["mean"], kept["covariance"] = gaussian_statistics(kept.pop("features"))
        return kept

    def keep(self, decides: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Write an entry; a directory that cannot be written is passed over."""
        size = sum(np.asarray(array).nbytes for array in arrays.values())
        if not _can_be_kept(decides) or size > LARGEST or not hosts.is_primary():
            return
        text, buffer = _text(decides), io.BytesIO()
        np.savez(buffer, **{_DECIDES: np.array(text)}, **arrays)
        try:
            write_atomically(self._path(text), buffer.getvalue())
        except Exception as error:
            if not is_refusal(error):
                raise

    def _path(self, text: str) -> Any:
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def open_cache(place: str | None) -> FeatureCache | None:
    """Return the cache in a directory, for "none" no cache.

    By default it is `features` in that of the user, `files.user_cache`, if there is one.
    """
    if place == "none":
        return None
    if place is not None:
        return FeatureCache(as_path(place))
    own = user_cache()
    return None if own is None else FeatureCache(own / "features")


def _can_be_kept(decides: Mapping[str, Any]) -> bool:
    """Return whether the network's record has a digest, without which it may have changed."""
    return bool(decides["network"].get("sha256"))


def _text(decides: Mapping[str, Any]) -> str:
    programs = {"ddpm-jax": __version__, "jax": jax.__version__}
    return json.dumps({**decides, **programs, **machine()}, sort_keys=True)
