"""Named tensors in an NPZ or safetensors file; their meaning is up to the caller."""

import os

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax.archives import BadArchive, read_npz, read_safetensors
from ddpm_jax.errors import UsageError
from ddpm_jax.files import read_file


def read_tensors(path: str | os.PathLike, *, what: str, how: str) -> dict[str, np.ndarray]:
    """Read all tensors of a file, here or in a bucket, by name.

    Args:
      path: an NPZ or a safetensors file.
      what: its content, for messages: "weights of the perceptual distance".
      how: where to read how to make such a file, for messages.

    Returns:
      name -> read-only array of the type in the file, which may be bfloat16.

    Raises:
      UsageError: there is no such file, or it is neither of these, or damaged.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise UsageError(
            f"The {what} cannot be read from {path} ({error.strerror or error}): {how}."
        ) from error
    # An NPZ file is a zip file. A safetensors file begins with 8 bytes of length, then a brace.
    is_zip = data[:2] == b"PK" and data[8:9] != b"{"
    try:
        return read_npz(data) if is_zip else read_safetensors(data)
    except BadArchive as error:
        kind = "a damaged NPZ file" if is_zip else "neither an NPZ nor a whole safetensors file"
        raise UsageError(f"{path} is {kind} ({error}): {how}.") from error


def as_weight(
    name: str, value: np.ndarray, source: str, dtype: DTypeLike | None = np.float32
) -> np.ndarray:
    """Return a copy of a tensor of weights, of the same shape, in another precision.

    Args:
      name: of the tensor, for messages.
      value: floating-point numbers of any width, bfloat16 too.
      source: origin of the tensor, for messages: "the diffusers state dict".
      dtype: of the result, float32, float16 or bfloat16; None: that of `value`.

    Raises:
      UsageError: it is not of a floating-point type (integers belong to a quantised network, whose
        scales are unknown here), or a number is not finite, or beyond the largest of `dtype`.
    """
    value = np.asarray(value)
    # Not `np.issubdtype`: to NumPy bfloat16 is not a floating-point type, but `ml_dtypes.finfo`
    # knows it.
    try:
        ml_dtypes.finfo(value.dtype)
        floating = value.dtype.kind != "c"
    except ValueError:
        floating = False
    if not floating:
        raise UsageError(
            f"{name} of {source} is of type {value.dtype}: weights are floating-point numbers, of "
            "16, 32 or 64 bits."
        )
    with np.errstate(over="ignore"):
        converted = value.astype(value.dtype if dtype is None else dtype)
    if not np.isfinite(converted).all():
        there = value[~np.isfinite(converted)].flat[0]
        if np.isfinite(there):
            raise UsageError(
                f"{name} of {source} holds {float(there)}, beyond the largest number of "
                f"{converted.dtype}: read it in a wider one, or give other weights."
            )
        raise UsageError(
            f"{name} of {source} holds {float(there)}, which is no finite number: the training has "
            "diverged, or the file is damaged; give other weights."
        )
    return converted
