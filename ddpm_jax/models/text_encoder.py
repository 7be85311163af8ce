"""CLIP's text encoder (Radford et al. 2021): token ids in, features of a text out.

A transformer in which a token attends to itself and those before it. Padding is not masked: ids
behind the end of a text have features too, and a network that reads all of them depends on what
pads. Stable Diffusion 1 has `TextEncoder()`, CLIP ViT-L/14, and Stable Diffusion 2 has
`STABLE_DIFFUSION_2`, OpenCLIP ViT-H/14 without its last layer. `text.tokenizer` makes the ids.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.checks import check_count, check_precision
from ddpm_jax.models.clip_layers import ACTIVATIONS, hidden_states, project
from ddpm_jax.models.layers import LayerNorm

TOKEN_STDDEV, POSITION_STDDEV = 0.02, 0.01  # of new embeddings, as in OpenAI's code


class TextFeatures(NamedTuple):
    """What a text encoder says of a batch of texts, all in its `dtype`."""

    context: jax.Array  # [B, L, D]: one vector a token, normalised, that a diffusion model reads
    hidden_states: tuple[jax.Array, ...]  # [B, L, D]: the embeddings, then each layer's output
    pooled: jax.Array  # [B, D]: the last layer's vector at the end of the text, normalised
    projected: jax.Array | None = None  # [B, P]: its projection, comparable with an image's


class TextEncoder(nn.Module):
    """CLIP's text encoder; the defaults are ViT-L/14's.

    `check_text_encoder` refuses what this class cannot build.
    """

    vocab_size: int = 49_408
    width: int = 768  # D, features of a token
    layers: int = 12
    heads: int = 12  # a divisor of width
    hidden: int = 3072  # width of the MLP of a layer
    activation: str = "quick_gelu"  # a key of clip_layers.ACTIVATIONS
    context_length: int = 77  # the most tokens of a text
    # Whose first occurrence is the end of a text; None: the largest id in it, as in OpenAI's code.
    end_id: int | None = None
    skip: int = 0  # layers at the end that the context leaves out ("clip skip")
    projection: int = 0  # P, features that text and image share; 0: no projection
    norm_eps: float = 1e-5
    # of the computation; parameters, normalisation statistics and softmax are float32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> TextFeatures:
        """Encode texts.

        Args:
          ids: int [B, L], 0..vocab_size-1, L at most context_length. Any other id gives NaN.

        Raises:
          UsageError: L is too large.
        """
        length, dtype = ids.shape[1], self.dtype
        if length > self.context_length:
            raise UsageError(
                f"The texts have {length} tokens, and this encoder reads {self.context_length}: "
                "make the tokenizer with that length."
            )
        tokens = self.param(
            "token_embedding",
            nn.initializers.normal(TOKEN_STDDEV),
            (self.vocab_size, self.width),
            jnp.float32,
        )
        positions = self.param(
            "position_embedding",
            nn.initializers.normal(POSITION_STDDEV),
            (self.context_length, self.width),
            jnp.float32,
        )
        rows = (
            jnp.asarray(tokens)
            .at[ids]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )
        h = (rows + positions[None, :length]).astype(dtype)
        states = hidden_states(h, self, causal=True)
        norm_out = LayerNorm(self.norm_eps, dtype, name="norm_out")
        last = norm_out(states[-1])
        pooled = last[jnp.arange(len(ids)), self._end(ids)]
        return TextFeatures(
            context=norm_out(states[-1 - self.skip]) if self.skip else last,
            hidden_states=tuple(states),
            pooled=pooled,
            projected=project(pooled, self, "text_projection"),
        )

    def _end(self, ids: jax.Array) -> jax.Array:
        """Return the position of the end of each text, int [B]."""
        return jnp.argmax(ids if self.end_id is None else ids == self.end_id, axis=1)


STABLE_DIFFUSION_2 = TextEncoder(width=1024, layers=23, heads=16, hidden=4096, activation="gelu")


def check_text_encoder(encoder: TextEncoder) -> None:
    """Check the fields of an encoder before anything compiles.

    Raises:
      UsageError: a field is wrong; the sentence names the value and what was expected.
    """
    for name in ("vocab_size", "width", "layers", "heads", "hidden", "context_length"):
        check_count(name, getattr(encoder, name))
    for name in ("skip", "projection"):
        check_count(name, getattr(encoder, name), or_none=True)
    check_precision(encoder)
    choose("activation", encoder.activation, ACTIVATIONS)
    if encoder.width % encoder.heads:
        raise UsageError(
            f"heads {encoder.heads} does not divide width {encoder.width}: choose a divisor of "
            f"{encoder.width}."
        )
    if encoder.skip > encoder.layers:
        raise UsageError(
            f"skip is {encoder.skip}, and the encoder has {encoder.layers} layers: leave out fewer."
        )
