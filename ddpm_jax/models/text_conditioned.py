"""A network that reads texts, together with the encoder that is learned with it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.condition import Condition
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.models.text_unet import TextUNet


class TextConditioned(nn.Module):
    """A network and an encoder of texts as one network, so that one gradient trains both."""

    network: TextUNet
    encoder: TextEncoder

    @property
    def num_classes(self) -> int:
        """Return the number of classes that the network takes, 0 for none."""
        return self.network.num_classes

    @property
    def low_res_channels(self) -> int:
        """Return the channels of the low-resolution image that the network takes, 0 for none."""
        return self.network.low_res_channels

    @property
    def out_channels(self) -> int:
        """Return the channels of the output."""
        return self.network.out_channels

    @property
    def context_size(self) -> int:
        """Return the number of features of a token."""
        return self.network.context_size

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: Condition | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the network as `TextUNet` does.

        The context of the condition may be tokens, int32 [B, L]: they are encoded first.
        """
        if condition is not None and condition.context is not None:
            condition = condition._replace(context=self._features(condition.context))
        return self.network(x, t, condition, dropout_keys=dropout_keys)

    def _features(self, context: jax.Array) -> jax.Array:
        has_tokens = jnp.issubdtype(context.dtype, jnp.integer)
        return self.encoder(context).context if has_tokens else context
