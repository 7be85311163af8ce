"""What a network may be told beside the noisy image and the time. Other layers carry it as a pytree
and never look in.

The null class: a network of K classes knows K + 1, the last of which, number K, says nothing.
Training replaces some of the labels by it (`training.conditioning`), so that one network holds the
conditional and the unconditional model (Ho and Salimans 2022, Classifier-Free Diffusion Guidance,
section 3.2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError


class Condition(NamedTuple):
    """One condition for each example; a field is None where the network is not told such a
    thing."""

    label: jax.Array | None = None  # int32 [B], 0..K-1, or K for the null class
    # float32 [B, H, W, C]: the low-resolution image, brought to the size of the image
    low_res: jax.Array | None = None


def null_condition(network: Any, x: jax.Array) -> Condition | None:
    """Returns the condition, for images x [B, H, W, C], that says nothing: the null class and a
    black image.

    Of the shapes that the network's num_classes and low_res_channels ask for, so it can be
    initialised with it; None for a network without conditions.
    """
    if not network.num_classes and not network.low_res_channels:
        return None
    return Condition(
        label=jnp.full(x.shape[:1], network.num_classes, jnp.int32)
        if network.num_classes
        else None,
        low_res=jnp.full((*x.shape[:3], network.low_res_channels), -1.0)
        if network.low_res_channels
        else None,
    )


def without_label(condition: Condition, num_classes: int) -> Condition:
    """Returns the same condition with the null class for every label: what guidance compares
    with."""
    return condition._replace(label=jnp.full_like(condition.label, num_classes))


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuses labels that are no class; the null class is none.

    Args:
      labels: int [n], on the host.
      num_classes: K.

    Raises:
      UsageError: the first label outside 0..K-1 is named.
    """
    outside = np.flatnonzero((np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes))
    if outside.size:
        raise UsageError(
            f"Label {np.asarray(labels)[outside[0]]} is no class of this model: choose among 0 to "
            f"{num_classes - 1}."
        )


def check_condition(
    condition: Condition | None, *, x: jax.Array, num_classes: int, low_res_channels: int
) -> None:
    """Refuses a condition that is not what the network was built for. Shapes and types only: values
    may be traced.

    Args:
      condition: what the network is given.
      x: [B, H, W, C], the images it is given them for.
      num_classes: of the network, 0 for none.
      low_res_channels: of the network, 0 for none.

    Raises:
      UsageError: a part is missing, not wanted, or of the wrong shape or type.
    """
    label, low_res = Condition() if condition is None else condition
    _check_presence("a class label", label, f"{num_classes} classes" if num_classes else "")
    _check_presence(
        "a low-resolution image",
        low_res,
        f"one of {low_res_channels} channels" if low_res_channels else "",
    )
    if label is not None and (
        label.shape != x.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer)
    ):
        raise UsageError(
            f"The labels are {label.dtype} {label.shape}: give one integer for each of "
            f"{x.shape[0]} images."
        )
    if low_res is not None and low_res.shape != (*x.shape[:3], low_res_channels):
        raise UsageError(
            f"The low-resolution images are {low_res.shape}: bring them to the size of the images "
            f"first, {(*x.shape[:3], low_res_channels)}."
        )


def _check_presence(what: str, given: jax.Array | None, wanted: str) -> None:
    if wanted and given is None:
        raise UsageError(
            f"This network is told {what} of every image ({wanted}), and none is given: give it "
            "one."
        )
    if not wanted and given is not None:
        raise UsageError(
            f"This network was not built to be told {what}: leave it out, or use a model that is."
        )
