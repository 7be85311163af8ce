"""A classifier of noisy images: the downward half of the U-Net, pooling and logits.

That half is in `trunk.py`, its training in `training.classifier_objective`, the guidance by its
gradient in `samplers`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.attention import attention
from ddpm_jax.models.layers import GroupNorm, dense, zero_init
from ddpm_jax.models.trunk import Trunk, check_trunk

POOLS = {  # of the pixels of the lowest level
    "mean": "their mean, and a linear map",
    "attention": "attention of their mean to them (Dhariwal and Nichol 2021)",
}


class AttentionPool(nn.Module):
    """Attention of the mean of all pixels to itself and to them, each with a learned position.

    Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision,
    section 2.4. The positions fix the number of pixels.
    """

    side: int  # height and width of the features
    num_heads: int
    features: int  # of the result

    @nn.compact
    def __call__(self, h_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, side, side, C] float32 to [B, features] float32.

        Raises:
          UsageError: another height or width.
        """
        B, H, W, C = h_BxHxWxC.shape
        if self.side != H or self.side != W:
            raise UsageError(
                f"This classifier attends to {self.side}x{self.side} positions, and these images "
                f"have {H}x{W}: give it images of the size it was trained on."
            )
        h_BxLxC = h_BxHxWxC.reshape(B, H * W, C)
        h_BxLxC = jnp.concatenate([h_BxLxC.mean(axis=1, keepdims=True), h_BxLxC], axis=1)
        positions_LxC = self.param(
            "positions", nn.initializers.normal(C**-0.5), h_BxLxC.shape[1:], jnp.float32
        )
        h_BxLxC = h_BxLxC + positions_LxC[None]
        pooled_Bx1xF = attention(
            h_BxLxC[:, :1], h_BxLxC, self.num_heads, jnp.float32, out_features=self.features
        )
        return pooled_Bx1xF[:, 0]


class Classifier(Trunk, kw_only=True):
    """p(y|x_t, t), the classifier of Dhariwal and Nichol (2021), section 4.

    Theirs has pool "attention"; then it takes images of one size. A new network gives all classes
    the same probability.
    """

    num_classes: int
    pool: str = "mean"  # a key of POOLS

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Map noisy images to logits.

        Args:
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1), and `resolution` if
            the pool is attention.
          t: [B], int32 or float32, the time given to the network.
          dropout_keys: [B] typed keys, one per example; None for no dropout.

        Returns:
          [B, num_classes] float32.
        """
        temb = nn.swish(self.embed(t))
        *_, h = self.down(x, temb, dropout_keys)
        h = self.middle(h, temb, dropout_keys)
        h = nn.swish(GroupNorm(self.norm_eps, groups=self.norm_groups, name="norm_out")(h))
        if self.pool == "attention":
            side = self.resolution // 2 ** (len(self.ch_mult) - 1)
            return AttentionPool(side, self.heads[-1], self.num_classes, name="pool")(h)
        h = h.mean(axis=(1, 2))
        return dense(self.num_classes, name="logits", dtype=jnp.float32, kernel_init=zero_init)(h)


def check_classifier(classifier: Classifier, height: int, width: int) -> None:
    """Check, before anything compiles, that a classifier can run on images of one size.

    Raises:
      UsageError: fewer than two classes, or as `trunk.check_trunk`.
    """
    if classifier.num_classes < 2:
        raise UsageError(
            f"A classifier of {classifier.num_classes} classes has nothing to tell apart: give it "
            "2 or more."
        )
    choose("pool", classifier.pool, POOLS)
    check_trunk(classifier, height, width)
