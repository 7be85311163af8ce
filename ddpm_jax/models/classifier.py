"""A classifier of noisy images: the downward half of the U-Net, mean pooling and logits.

That half is in `trunk.py`, its training in `training.classifier_objective`, the guidance by its
gradient in `samplers`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError
from ddpm_jax.models.layers import GroupNorm, dense, zero_init
from ddpm_jax.models.trunk import Trunk, check_trunk


class Classifier(Trunk, kw_only=True):
    """p(y|x_t, t), the classifier of Dhariwal and Nichol (2021), section 4, with mean pooling.

    Theirs pools by attention.

    A new network gives all classes the same probability.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, *, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Map noisy images to logits.

        Args:
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1).
          t: [B], int32 or float32, the time given to the network.
          dropout_keys: [B] typed keys, one per example; None for no dropout.

        Returns:
          [B, num_classes] float32.
        """
        temb = nn.swish(self.embed(t))
        *_, h = self.down(x, temb, dropout_keys)
        h = self.middle(h, temb, dropout_keys)
        h = nn.swish(GroupNorm(self.norm_eps, name="norm_out")(h)).mean(axis=(1, 2))
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
    check_trunk(classifier, height, width)
