"""Files of weights that everybody's numbers are of, known by their digests.

A number in features reproduces only with the weights that others took. Nothing is downloaded.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, file_sha256

# Many files have the first digits of their digest in their names: weights-6726825d.pth.
_PROMISE = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


class Published(NamedTuple):
    """A file of weights as its authors give it away."""

    name: str  # of the file
    sha256: str  # 64 hexadecimal digits
    place: str  # where to get it, for messages


def missing_weights(network: str, published: Sequence[Published]) -> UsageError:
    """Return the error that no file was given, with what to do."""
    known = "; or ".join(f"{file.name} (SHA-256 {file.sha256}), {file.place}" for file in published)
    return UsageError(
        f"The features {network} need their weights, which do not come with the package: download "
        f"{known}, and name the file by feature_weights."
    )


def check_digest(path: str | os.PathLike, published: Sequence[Published]) -> tuple[str, str | None]:
    """Read a file to see whether it is a published one.

    Args:
      path: the file, here or in a bucket.
      published: those that are known of this network.

    Returns:
      its SHA-256, and a warning in a sentence where it is none of them.

    Raises:
      UsageError: it cannot be read, or its name has the digits of another digest.
    """
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise UsageError(
            f"The weights cannot be read from {path} ({error.strerror or error})."
        ) from error
    name = as_path(path).name
    promise = _PROMISE.search(name)
    if promise and not digest.startswith(promise[1]):
        raise UsageError(
            f"{path} is another file than its name says: its SHA-256 is {digest}, which does not "
            f"begin with {promise[1]}. Download it again, or rename it if you made it yourself."
        )
    if digest in {file.sha256 for file in published}:
        return digest, None
    return digest, (
        f"{path} (SHA-256 {digest}) is not {' or '.join(file.name for file in published)} as "
        "published: numbers will not compare with those of others unless its weights are the same."
    )
