"""The weights of the FID's Inception-v3, from a file that the user provides.

pytorch-fid and torch-fidelity give away the same weights of TensorFlow's graph, as state dicts with
the names of torchvision: Conv2d_1a_3x3.conv.weight, Mixed_5b.branch1x1.bn.running_var, fc.weight.
Each batch normalisation becomes part of the convolution before it.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.published_weights import Published
from ddpm_jax.interop.renaming import Path, shapes_of
from ddpm_jax.interop.tensor_files import as_weight
from ddpm_jax.models.inception import NUM_CLASSES, Inception

_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = (
    Published(
        "pt_inception-2015-12-05-6726825d.pth",
        _SHA256,
        "release fid_weights of mseitzer/pytorch-fid on GitHub",
    ),
    Published(
        "weights-inception-2015-12-05-6726825d.pth",
        _SHA256,
        "release v0.2.0 of toshas/torch-fidelity on GitHub, the same file",
    ),
)
EPSILON = 1e-3  # added to the variance of a batch normalisation
# of training, and the classifier's bias, which the Inception Score leaves out
_IGNORED = re.compile(r"AuxLogits\..*|fc\.bias|.*\.num_batches_tracked")
_NORM = ("weight", "bias", "running_mean", "running_var")


def inception_params(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """Build the parameters of `Inception` from tensors by name.

    Args:
      tensors: a state dict; convolutions [out, in, height, width], the classifier [1008, 2048].
      source: their origin, for messages.

    Returns:
      params, nested, float32: `Inception().apply({"params": params}, x)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights; or it is the Inception of ImageNet's 1,000 classes.
    """
    shapes = inception_shapes()
    names = {path: _names(path) for path in shapes}
    expected = {name for group in names.values() for name in group}
    missing = [name for group in names.values() for name in group if name not in tensors]
    left_over = sorted(n for n in tensors if n not in expected and not _IGNORED.fullmatch(n))
    for problem, found in (("lacks", missing), ("has, beyond the network's,", left_over)):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise UsageError(
                f"{source} {problem} {', '.join(found[:3])}{more}: it is not the FID's Inception "
                f"in the names of PyTorch; {PUBLISHED[0].name} is."
            )
    if np.shape(tensors["fc.weight"])[:1] == (1000,):
        raise UsageError(
            f"{source} is an Inception of 1,000 classes, which was trained elsewhere and has other "
            f"features: the FID's has {NUM_CLASSES:,}, {PUBLISHED[0].name}."
        )
    params = {}
    for path, shape in shapes.items():
        weights = [as_weight(name, tensors[name], source) for name in names[path]]
        value = _value(path, *weights) if _fit(weights, path, shape) else None
        if value is None or value.shape != shape:
            raise UsageError(
                f"{names[path][0]} of {source} has shape {list(weights[0].shape)} and does not fit "
                f"the network's {list(shape)}: it is not the FID's Inception; {PUBLISHED[0].name} "
                "is."
            )
        params[path] = value
    return unflatten_dict(params)


@functools.cache
def inception_shapes() -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    return shapes_of(Inception(), jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32))


def _names(path: Path) -> list[str]:
    """Return the names of the tensors that a parameter is made of."""
    *modules, leaf = path
    if modules == ["fc"]:
        return ["fc.weight"]
    module = ".".join(modules).replace("conv_", "Conv2d_").replace("mixed_", "Mixed_")
    norm = [f"{module}.bn.{name}" for name in _NORM]
    return [f"{module}.conv.weight", norm[0], norm[3]] if leaf == "kernel" else norm


def _fit(weights: list[np.ndarray], path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a kernel has its axes, and the other tensors are vectors of its features."""
    vectors = weights[1:] if path[-1] == "kernel" else weights
    axes = len(shape) if path[-1] == "kernel" else 1
    return weights[0].ndim == axes and all(vector.shape == shape[-1:] for vector in vectors)


def _value(path: Path, *weights: np.ndarray) -> np.ndarray:
    """Fold y = (W x - mean) / sqrt(var + eps) * scale + bias into a kernel and a bias, float32."""
    if path == ("fc", "kernel"):
        return weights[0].T
    tensors = [weight.astype(np.float64) for weight in weights]
    if path[-1] == "kernel":
        kernel, scale, variance = tensors
        folded = kernel.T * (scale / np.sqrt(variance + EPSILON))  # [width, height, in, out]
        return np.swapaxes(folded, 0, 1).astype(np.float32)
    scale, bias, mean, variance = tensors
    return (bias - mean * scale / np.sqrt(variance + EPSILON)).astype(np.float32)
