"""Latents in an NPZ file: its arrays, the first stage they belong to, and checks for a decoder.

    latents          float32 [N, h, w, c], what the decoder takes
    codes            int32 [N, h, w], of a VQ-VAE; either of the two is enough to decode
    mean             float32 [N, h, w, c], of the posterior, where `latents` are draws from it
    log_variance     float32 [N, h, w, c], of a VAE's posterior
    names            [N], of the pictures
    kind             ae, vae or vq
    first_stage      SHA-256 of the weights, 64 hexadecimal digits
    made_by where these were, for information

A file from elsewhere needs `latents` or `codes` only; `first_stage` is trusted where present.
"""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.archives import BadArchive, read_npz
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.coding import Latents
from ddpm_jax.files import as_path, read_file, reporting, write_atomically

Arrays = Mapping[str, np.ndarray]


def write(
    path: str | os.PathLike,
    found: Latents,
    *,
    names: Sequence[str],
    kind: str,
    first_stage: str,
    made_by: str,
) -> None:
    """Write the file, whole or not at all; see the module for the arguments.

    Raises:
      FailureError: it cannot be written.
    """
    arrays: dict[str, Any] = {
        name: array for name, array in found._asdict().items() if array is not None
    }
    buffer = io.BytesIO()
    np.savez(
        buffer, **arrays, names=np.array(names), kind=kind, first_stage=first_stage, made_by=made_by
    )
    with reporting(path):
        write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike) -> Arrays:
    """Return the arrays of a file by name.

    Raises:
      UsageError: there is no such file, or it cannot be read.
      FailureError: it cannot be reached.
    """
    path = as_path(path)
    with reporting(path, "read"):
        data = read_file(path) if path.is_file() else None
    if data is None:
        raise UsageError(f"There is no file {path}: give one that `ddpm-jax encode` has written.")
    try:
        return read_npz(data)
    except BadArchive as error:
        raise UsageError(
            f"{path} is not an NPZ file, or damaged ({error}): give one that `ddpm-jax "
            "encode` has written."
        ) from error


def picture_names(arrays: Arrays) -> list[str]:
    """Return the names of the pictures, without folder and extension; [] where there are none.

    In a file from elsewhere they may be anything: other than a list of text is ignored, and a
    character that is not printable, or not allowed in the name of a file, becomes an underscore.
    """
    names = arrays.get("names")
    if names is None or names.ndim != 1 or names.dtype.kind != "U":
        return []
    stems = (pathlib.PurePath(name).stem for name in names.tolist())
    return ["".join(letter if letter.isprintable() else "_" for letter in stem) for stem in stems]


def check_made_by(path: str | os.PathLike, arrays: Arrays, *, first_stage: str, what: str) -> None:
    """Refuse latents of another first stage.

    Args:
      path: of the file, for the message.
      arrays: in it.
      first_stage: `results.weights_digest` of the decoder's weights.
      what: these weights, in words.

    Raises:
      UsageError: the digests differ.
    """
    theirs = str(arrays.get("first_stage", first_stage))
    if theirs != first_stage:
        made_by = f" ({arrays['made_by']})" if "made_by" in arrays else ""
        raise UsageError(
            f"{path} holds latents of another first stage{made_by}, {theirs[:12]}..., than {what}, "
            f"{first_stage[:12]}...: decode with the one that encoded them."
        )


def decodable(
    path: str | os.PathLike, arrays: Arrays, *, channels: int, codebook: np.ndarray | None
) -> np.ndarray:
    """Return the decoder's input from a file, float32 [N, h, w, c].

    Args:
      path: of the file, for the message.
      arrays: in it.
      channels: c of the first stage.
      codebook: float32 [K, c], for a VQ-VAE.

    Raises:
      UsageError: neither latents nor codes, of another shape or type than the decoder's, or codes
        that differ from those of the latents in the same file.
    """
    if codebook is None and "codes" in arrays:
        raise UsageError(
            f"{path} holds codes, but this first stage has no codebook: decode with the one of the "
            "codes."
        )
    if "latents" not in arrays and "codes" not in arrays:
        wanted = "'latents'" if codebook is None else "'latents' or 'codes'"
        there = ", ".join(map(repr, arrays)) or "nothing"
        raise UsageError(
            f"{path} has no {wanted}, but {there}: give a file that the encode command has written."
        )
    looked_up = (
        codebook[_codes(path, arrays["codes"], len(codebook))] if "codes" in arrays else None
    )
    if "latents" not in arrays:
        return looked_up
    z = arrays["latents"]
    if (
        z.ndim != 4
        or z.shape[-1] != channels
        or z.size == 0
        or not np.issubdtype(z.dtype, np.floating)
    ):
        raise UsageError(
            f"The latents of {path} are {z.dtype} {list(z.shape)}: this decoder takes float32 [N, "
            f"h, w, {channels}]."
        )
    with np.errstate(over="ignore"):
        z = z.astype(np.float32)
    if not np.isfinite(z).all():
        raise UsageError(f"Latents of {path} are not finite in float32: give finite numbers.")
    if looked_up is not None and not np.array_equal(z, looked_up):
        raise UsageError(
            f"The latents of {path} are not the codes beside them: leave one of the two out of the "
            "file."
        )
    return z


def _codes(path: str | os.PathLike, codes: np.ndarray, num_codes: int) -> np.ndarray:
    if codes.ndim != 3 or codes.size == 0 or not np.issubdtype(codes.dtype, np.integer):
        raise UsageError(
            f"The codes of {path} are {codes.dtype} {list(codes.shape)}: integers [N, h, w] are "
            "expected."
        )
    if codes.min() < 0 or codes.max() >= num_codes:
        raise UsageError(
            f"The codes of {path} are in {codes.min()}..{codes.max()}, but this codebook has "
            f"0..{num_codes - 1}: decode with the first stage that they are of."
        )
    return codes
