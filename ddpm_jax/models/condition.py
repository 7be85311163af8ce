"""Conditions of a network besides the noisy image and the time.

Other layers pass a `Condition` on as a pytree without looking inside.

The null class: a network of K classes has K + 1 embeddings, the last of which, number K, carries no
information. Training replaces some of the labels by it (`training.conditioning`), so that one
network is both the conditional and the unconditional model (Ho and Salimans 2022, Classifier-Free
Diffusion Guidance, section 3.2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError


class Condition(NamedTuple):
    """One condition per example; a field is None where the network takes no such condition."""

    label: jax.Array | None = None  # int32 [B], 0..K-1, or K for the null class
    # float32 [B, H, W, C]: the low-resolution image, resized to the size of the image
    low_res: jax.Array | None = None
    # float32 [B, L, D]: the features of a text, of `text_encoder.TextEncoder`, one row a token
    context: jax.Array | None = None
    # float32 [B, A]: how training images were augmented; None, or zeros: they are as they were
    augment: jax.Array | None = None


def null_condition(network: Any, x: jax.Array) -> Condition | None:
    """Return an uninformative condition for images x [B, H, W, C].

    It is the null class, a black image, and one token of zeros for a text. Its shapes follow from
    the network's num_classes, low_res_channels and context_size, so the network can be initialised
    with it; None for an unconditional network. A network that has classes but no null class
    (null_class is False) gets class 0, which does inform it.
    """
    context_size = getattr(network, "context_size", 0)
    null_class = getattr(network, "null_class", True)
    if not (network.num_classes or network.low_res_channels or context_size):
        return None
    return Condition(
        label=jnp.full(x.shape[:1], network.num_classes if null_class else 0, jnp.int32)
        if network.num_classes
        else None,
        low_res=jnp.full((*x.shape[:3], network.low_res_channels), -1.0)
        if network.low_res_channels
        else None,
        context=jnp.zeros((len(x), 1, context_size)) if context_size else None,
    )


def uninformed(
    condition: Condition, num_classes: int, context: jax.Array | None = None
) -> Condition:
    """Return the condition without class and text, for guidance.

    Args:
      condition: of B images.
      num_classes: K; the null class takes the place of the labels, if there are any.
      context: float [B, L, D] in place of the features of the text: those of "", or of what is to
        be avoided; not read without a text.
    """
    return condition._replace(
        label=None if condition.label is None else jnp.full_like(condition.label, num_classes),
        context=None if condition.context is None else context,
    )


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuse labels outside 0..K-1; the null class is refused too.

    Args:
      labels: int [n], on the host.
      num_classes: K.

    Raises:
      UsageError: naming the first label outside 0..K-1.
    """
    outside = np.flatnonzero((np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes))
    if outside.size:
        raise UsageError(
            f"Label {np.asarray(labels)[outside[0]]} is no class of this model: choose among 0 to "
            f"{num_classes - 1}."
        )


def check_condition(
    condition: Condition | None,
    *,
    x: jax.Array,
    num_classes: int = 0,
    low_res_channels: int = 0,
    context_size: int = 0,
    augment_dim: int = 0,
) -> None:
    """Refuse a condition that does not fit the network.

    Only shapes and types are looked at: values may be traced.

    Args:
      condition: the network's input.
      x: [B, H, W, C], the images it belongs to.
      num_classes: of the network, 0 for none.
      low_res_channels: of the network, 0 for none.
      context_size: D of the text features that it looks at, 0 for none.
      augment_dim: A of the augmentations that it may be given, 0 for none.

    Raises:
      UsageError: a part is missing, superfluous, or of the wrong shape or type.
    """
    label, low_res, context, augment = Condition() if condition is None else condition
    _check_presence("a class label", label, f"{num_classes} classes" if num_classes else "")
    _check_presence(
        "a low-resolution image",
        low_res,
        f"one of {low_res_channels} channels" if low_res_channels else "",
    )
    _check_presence("a text", context, f"{context_size} features a token" if context_size else "")
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
    if context is not None and (
        context.ndim != 3 or (len(context), context.shape[2]) != (len(x), context_size)
    ):
        raise UsageError(
            f"The text features are {context.shape}: give [B, tokens, {context_size}] for "
            f"{len(x)} images."
        )
    if augment is not None and augment.shape != (len(x), augment_dim):
        raise UsageError(
            f"The augmentations are {augment.shape}: this network takes {(len(x), augment_dim)}."
        )


def _check_presence(what: str, given: jax.Array | None, wanted: str) -> None:
    if wanted and given is None:
        raise UsageError(
            f"This network needs {what} for every image ({wanted}), and none is given: give it one."
        )
    if not wanted and given is not None:
        raise UsageError(
            f"This network was not built to take {what}: leave it out, or use a model that does."
        )
