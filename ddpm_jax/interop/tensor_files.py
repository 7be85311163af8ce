"""Named tensors in one file of the user's, NPZ or safetensors. What their names mean is said by who reads them."""

import io
import os
import zipfile

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path


def read_tensors(path: str | os.PathLike, *, what: str, how: str) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, here or in a bucket, by name.

    Args:
      path: an NPZ or a safetensors file.
      what: in it, for the message: "weights of the perceptual distance".
      how: where to find out how to make one, likewise.

    Raises:
      UsageError: no such file, or it is neither, or damaged; or safetensors, and the package is not there.
    """
    try:
        data = as_path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"The {what} cannot be read from {path} ({error.strerror or error}): {how}.") from error
    try:
        if data[:2] == b"PK":  # an NPZ file is a ZIP archive
            with np.load(io.BytesIO(data)) as archive:
                return dict(archive)
        from safetensors.numpy import load  # an extra
    except ImportError as error:
        raise UsageError(
            f"Reading {path} needs the package safetensors: `pip install safetensors`, or give an NPZ file."
        ) from error
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is a damaged NPZ file ({error}): {how}.") from error
    try:
        return load(data)
    except Exception as error:  # of the package's own kind
        raise UsageError(f"{path} is neither an NPZ nor a safetensors file ({error}): {how}.") from error
