"""Conditions of an example besides x_t and t: labels, dropped at random, and low_res.

What a condition is and how the network uses it is in `models`. Guidance at sampling, which uses the
null class, is in `samplers.guidance`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.data.transforms import downsample, upsample
from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition


class Conditioning(NamedTuple):
    """The conditions of a model; by default none."""

    num_classes: int = 0  # K; 0: no labels
    # probability, in training, that a label is replaced by the null class
    label_dropout: float = 0.0
    # how many times smaller, in height and width, the low-resolution image is; 0: none
    low_res_factor: int = 0
    # Whether `Condition.low_res` is a mask, 1 where it is painted, and the latents of the picture
    # with that part grey: the input of networks for inpainting, after x_t.
    inpainting: bool = False
    has_text: bool = False  # whether there is a caption; captions are hidden where they are drawn
    null_class: bool = True  # whether there is a further class, number K, that tells nothing

    def image_channels(self, channels: int) -> int:
        """Return the channels of `Condition.low_res`, 0 for none, where x_0 has so many."""
        return 1 + channels if self.inpainting else channels if self.low_res_factor else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the conditions in words."""
        used = {
            "their label": self.num_classes,
            "the image of lower resolution": self.low_res_factor,
            "the picture to paint over": self.inpainting,
            "their caption": self.has_text,
        }
        return tuple(name for name, is_used in used.items() if is_used)


UNCONDITIONAL = Conditioning()


def make_condition(
    conditioning: Conditioning,
    x_0: chex.Array,
    label: chex.Array | None,
    context: chex.Array | None = None,
) -> Condition | None:
    """Return the condition of these examples, or None for an unconditional model.

    Args:
      conditioning: which conditions there are.
      x_0: float32 [B, H, W, C] in [-1, 1], after any random flip; H and W multiples of the factor.
      label: int32 [B] in 0..K-1; not read without classes.
      context: of the captions, tokens int32 [B, L] or features float [B, L, D]; not read without
        texts.

    Raises:
      UsageError: a model that paints over a picture, for which there are no masks.
    """
    if conditioning.inpainting:
        raise UsageError(
            "This model paints over a picture, as inpaint has it do: without a picture and a mask "
            "for every image it can be neither trained nor measured."
        )
    if not conditioning.names:
        return None
    factor = conditioning.low_res_factor
    return Condition(
        label=label if conditioning.num_classes else None,
        low_res=upsample(downsample(x_0, factor), factor) if factor else None,
        context=context if conditioning.has_text else None,
    )


def drop_labels(
    conditioning: Conditioning, condition: Condition | None, keys: chex.PRNGKey
) -> Condition | None:
    """Replace each label by the null class with probability `label_dropout`.

    This is algorithm 1 of Ho and Salimans 2022.

    `keys` are typed keys [B], one for each example, so that a draw does not depend on the batch
    around it.
    """
    if condition is None or condition.label is None or not conditioning.label_dropout:
        return condition
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, conditioning.label_dropout))(keys)
    return condition._replace(label=jnp.where(dropped, conditioning.num_classes, condition.label))
