"""A small classifier of small grey images, whose last layer but one has the features of `digits`.

`tools/train_digit_features.py` trains it on the bundled digits.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.layers import Conv3x3, dense

SIDE = 8  # height and width of its images


class Classified(NamedTuple):
    """What the classifier says of B images."""

    features: jax.Array  # float32 [B, D]
    logits: jax.Array  # float32 [B, K]


class DigitClassifier(nn.Module):
    """Three convolutions, the second of which halves the image, then D features and K logits.

    Each layer but the last is followed by a swish: a ReLU leaves a fifth of the features at 0.
    """

    num_classes: int = 10
    width: int = 16  # channels of the first convolution; the others have twice as many
    features: int = 64  # D

    @nn.compact
    def __call__(self, x: jax.Array) -> Classified:
        """Map [B, 8, 8, 1] on [-1, 1] to features and logits."""
        width = self.width
        h = nn.swish(Conv3x3(width, name="conv_0")(x))
        h = nn.swish(Conv3x3(2 * width, stride=2, name="conv_1")(h))
        h = nn.swish(Conv3x3(2 * width, name="conv_2")(h))
        h = h.reshape(len(h), -1)
        features = nn.swish(dense(self.features, name="features", dtype=jnp.float32)(h))
        return Classified(
            features, dense(self.num_classes, name="logits", dtype=jnp.float32)(features)
        )
