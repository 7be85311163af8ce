"""DINOv2's vision transformer (Oquab et al. 2023): pictures to features, without labels or texts.

A linear map of patches, one more token for the whole picture, learned positions that are
interpolated to the size of the picture, and blocks whose branches are scaled by learned vectors.
CLIP's image encoder, which fixes the size, is in `image_encoder.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.models.attention import attention
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.clip_layers import gelu
from ddpm_jax.models.dit import patchify
from ddpm_jax.models.layers import LayerNorm, default_init, dense

# Of red, green and blue in 0..1 over ImageNet, by which pictures are normalised.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
EPSILON = 1e-6  # added to the variance of a layer normalisation


class VisionTransformer(nn.Module):
    """The network; the defaults are ViT-L/14's. `check_vision_transformer` refuses other fields."""

    width: int = 1024  # features of a token, and of the result
    layers: int = 24
    heads: int = 16  # a divisor of width
    hidden: int = 4096  # width of the MLP of a layer
    gated: bool = False  # whether that is a SwiGLU (Shazeer 2020), as in ViT-g
    patch_size: int = 14
    side: int = 37  # rows and columns of patches that positions were learned for: 518 pixels
    # Added to the rows when positions are interpolated, an oddity of the authors' code that its
    # features include. transformers has 0.
    offset: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encode pictures.

        Args:
          x: float32 [B, H, W, 3], of `MEAN` and `STD`; H and W multiples of `patch_size`.

        Returns:
          [B, width] float32: the token of the whole picture, normalised.
        """
        B, H, W, _ = x.shape
        C, p = self.width, self.patch_size
        new = nn.initializers.normal(0.02)
        whole = self.param("class_token", new, (C,), jnp.float32)
        positions = self.param("positions", new, (self.side**2 + 1, C), jnp.float32)
        patches = dense(C, name="patch_embedding", dtype=jnp.float32)(patchify(x, p))
        whole = jnp.broadcast_to(whole, (B, 1, C))
        h = jnp.concatenate([whole, patches], axis=1)
        h = h + self._positions(positions, H // p, W // p)[None]
        for i in range(self.layers):
            h = VisionBlock(self.heads, self.hidden, self.gated, name=f"block_{i}")(h)
        return LayerNorm(EPSILON, name="norm_out")(h[:, 0])

    def _positions(self, positions: jax.Array, rows: int, columns: int) -> jax.Array:
        """Return positions [1 + rows columns, C] of [1 + side side, C]."""
        if rows == columns == self.side:
            return positions
        grid = positions[1:].reshape(self.side, self.side, -1)
        for axis, length in enumerate((rows, columns)):
            weights = bicubic_weights(self.side, length, (length + self.offset) / self.side)
            grid = jnp.moveaxis(jnp.tensordot(weights, grid, (1, axis)), 0, axis)
        return jnp.concatenate([positions[:1], grid.reshape(rows * columns, -1)])


class VisionBlock(nn.Module):
    """A residual block with the norms in front and learned scales behind.

    x = x + scale_1 * attention(norm_1(x))
    y = x + scale_2 * mlp(norm_2(x))

    mlp(h) = mlp_dense1(gelu(mlp_dense0(h))), or where it is gated, with g and u the halves of
    mlp_dense0(h), mlp_dense1(swish(g) * u).
    """

    heads: int
    hidden: int
    gated: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, L, C] to the same shape."""
        C, dtype = x.shape[-1], jnp.float32
        h = LayerNorm(EPSILON, name="norm_1")(x)
        x = x + self._scale("scale_1", C) * attention(
            h, h, self.heads, dtype, out_init=default_init
        )
        h = LayerNorm(EPSILON, name="norm_2")(x)
        h = dense(self.hidden * (2 if self.gated else 1), name="mlp_dense0", dtype=dtype)(h)
        if self.gated:
            gate, up = jnp.split(h, 2, axis=-1)
            h = nn.swish(gate) * up
        else:
            h = gelu(h)
        return x + self._scale("scale_2", C) * dense(C, name="mlp_dense1", dtype=dtype)(h)

    def _scale(self, name: str, channels: int) -> jax.Array:
        scale = self.param(name, nn.initializers.ones, (channels,), jnp.float32)
        return scale[None, None]


def bicubic_weights(before: int, after: int, scale: float) -> np.ndarray:
    """Return the weights float32 [after, before] of bicubic interpolation, not antialiased.

    It is PyTorch's: new pixel i lies at (i + 1/2) / scale - 1/2, the cubic has a = -3/4, and the
    pixels at the edges are repeated.
    """
    places = (np.arange(after) + 0.5) / scale - 0.5
    first = np.floor(places)
    weights = np.zeros((after, before))
    for step in range(-1, 3):
        index = np.clip(first + step, 0, before - 1).astype(int)
        np.add.at(weights, (np.arange(after), index), _cubic(places - first - step))
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Return the cubic convolution kernel (Keys 1981) at x in [-2, 2]."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x <= 1, near, a * (((x - 5) * x + 8) * x - 4))


def check_vision_transformer(network: VisionTransformer) -> None:
    """Check the fields of a network before anything compiles.

    Raises:
      UsageError: a field is wrong; the sentence names the value and what was expected.
    """
    for name in ("width", "layers", "heads", "hidden", "patch_size", "side"):
        check_count(name, getattr(network, name))
    if network.width % network.heads:
        raise UsageError(
            f"heads {network.heads} does not divide width {network.width}: choose a divisor of "
            f"{network.width}."
        )
