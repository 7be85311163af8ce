"""Small layers and initialisers shared by the networks, and the embeddings of time and class.

The blocks made of them are in `trunk.py`, `attention.py` and `dit.py`. Parameters are float32; each
layer computes in `dtype`.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.models.convolution import conv2d, conv_upsampled
from ddpm_jax.separate_calls import compiled_apart

NUM_GROUPS = 32  # of a group normalisation (DDPM, appendix B)
BOX = (1, 1)  # the filter by which a pixel is the mean of 2x2 pixels, or repeated
EPSILON = 1e-6  # added to the variance there; the TensorFlow default the original was trained with

TIME_EMBEDDINGS = {
    "sin_cos": "sines first, the last frequency exactly 1/10000 (DDPM)",
    "sin_cos_exclusive": "sines first, the last frequency just above 1/10000",
    "cos_sin": "cosines first, the last frequency just above 1/10000 (Improved DDPM, DiT)",
    "cos_sin_inclusive": (
        "cosines first, the last frequency exactly 1/10000 (DiT as diffusers computes it)"
    ),
}
# Zeros before and after each axis of an image that a 3x3 convolution of stride 2 halves.
# TensorFlow's SAME pads an even side at its end only, PyTorch's padding=1 at both: different
# networks.
DOWNSAMPLE_PADDINGS = {"end": (0, 1), "both": (1, 1)}
RESAMPLINGS = {  # between two levels
    "conv": "a convolution of stride 2; pixels repeated and a convolution (DDPM)",
    "block": "a residual block that averages or repeats pixels (Dhariwal and Nichol 2021)",
    "pool": "the mean of 2x2 pixels; pixels repeated; no parameters",
}

# Weights are drawn from U(-r, r), r = sqrt(3 * scale / mean(fan_in, fan_out)). The last layer of
# each residual branch and of the network starts at practically 0: a new residual block is its
# shortcut, a new network outputs 0.
default_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


ONLY_SHAPES = "only_shapes"


def shape_keys(key: jax.Array) -> dict[str, jax.Array]:
    """Return keys for `init`, instead of `key`, where only the shapes of parameters are wanted."""
    return {"params": key, ONLY_SHAPES: key}


class Layer(nn.Module):
    """A module that traces the initialisers of its parameters only where these are drawn.

    Flax traces them also to compare the parameters it is given with their shapes. That takes longer
    than tracing the layers themselves; here the shapes are compared.
    """

    @nn.nowrap
    def param(
        self,
        name: str,
        init_fn: Callable[..., jax.Array],
        shape: tuple[int, ...],
        dtype: DTypeLike = jnp.float32,
    ) -> jax.Array:
        """Return a parameter as `nn.Module.param` does, and raise the same errors.

        With the keys of `shape_keys`, all parameters are 0.
        """
        if not self.has_variable("params", name):
            zeros = nn.initializers.zeros
            return super().param(
                name, zeros if self.has_rng(ONLY_SHAPES) else init_fn, shape, dtype
            )
        value = self.get_variable("params", name)
        if value.shape != tuple(shape):
            path = "/".join(self.path)
            raise flax.errors.ScopeParamShapeError(name, path, value.shape, tuple(shape))
        return value


class Conv3x3(Layer):
    """A zero-padded 3x3 convolution with a bias.

    [B, H, W, C] -> [B, H / stride, W / stride, features] with stride 1 or 2, computed and returned
    in `dtype`.
    """

    features: int
    stride: int = 1
    # zeros before and after each axis; with stride 2, see DOWNSAMPLE_PADDINGS
    padding: tuple[int, int] = (1, 1)
    kernel_init: nn.initializers.Initializer = default_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        padding = (self.padding, self.padding)
        kernel = converted(kernel, self.dtype, x)
        y = conv2d(x.astype(self.dtype), kernel, stride=self.stride, padding=padding)
        return y + bias.astype(self.dtype)[None, None, None, :]


class _Dense(Layer, nn.Dense):
    """`nn.Dense` as a `Layer`."""


def dense(
    features: int,
    *,
    name: str,
    dtype: DTypeLike,
    kernel_init: nn.initializers.Initializer = default_init,
    use_bias: bool = True,
) -> nn.Dense:
    """Return a linear map of the last axis, [..., C] -> [..., features].

    On images it is a 1x1 convolution.
    """
    return _Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        promote_dtype=_converted_inputs,
        name=name,
    )


def converted(parameter: jax.Array, dtype: DTypeLike, x: jax.Array) -> jax.Array:
    """Return a parameter in `dtype`, converted no sooner than the input x of its layer is there.

    XLA would convert all parameters of a network at once, before its first layer or even before a
    loop around it, and CPUs convert half precision to compute with it: with weights of 16 bits
    that is another copy of them, of twice the size. So such a parameter is made to depend on x: it
    would be 0 if the first number of x were one NaN of the 2^24 that there are. Of bfloat16, XLA
    for CPUs makes the copy all the same (jax 0.10.2): it selects in float32.
    """
    if parameter.dtype.itemsize == 2 and (
        parameter.dtype != jnp.dtype(dtype) or jax.default_backend() == "cpu"
    ):
        first = jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
        bits = jax.lax.bitcast_convert_type(first.astype(jnp.float32), jnp.uint32)
        parameter = jnp.where(bits != _NO_NUMBER, parameter, jnp.zeros((), parameter.dtype))
    return parameter.astype(dtype)


_NO_NUMBER = 0x7FC12345  # the bits of a NaN that no computation gives


def _converted_inputs(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Convert what `nn.Dense` computes with, its hook `promote_dtype`."""
    bias = None if bias is None else bias.astype(dtype)
    return x.astype(dtype), converted(kernel, dtype, x), bias


@jax.custom_jvp
def computed_once(x: jax.Array) -> jax.Array:
    """Return x; on a CPU, x and the gradient by it are computed once, whoever reads them.

    XLA for CPUs repeats additions in every loop that reads their sum, if no other kind of operation
    does. What reaches block i of a transformer is a sum of i terms, and the gradient there is one
    of the terms of all blocks behind it, so that N blocks cost N^2 additions. A call that is not
    inlined is no part of a loop; XLA for CPUs removes `jax.lax.optimization_barrier` too early.
    """
    return _identity(x)


@computed_once.defjvp
def _computed_once_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return computed_once(*primals), computed_once(*tangents)


@compiled_apart()
def _identity(x: jax.Array) -> jax.Array:
    return x


def timestep_embedding(t: jax.Array, features: int, form: str = "sin_cos") -> jax.Array:
    """Embed the time as sines and cosines of geometrically spaced frequencies.

    sin_cos: emb(t) = [sin(t w_0), ..., sin(t w_{n-1}), cos(t w_0), ..., cos(t w_{n-1})],
      w_i = 10000^(-i / (n-1))
    cos_sin: emb(t) = [cos(t w_0), ..., cos(t w_{n-1}), sin(t w_0), ..., sin(t w_{n-1})],
      w_i = 10000^(-i / n)

    with n = features // 2; cos_sin_inclusive has the order of the second and the frequencies of the
    first, sin_cos_exclusive the order of the first and the frequencies of the second. The first is
    the original DDPM's, in diffusers `flip_sin_to_cos=False, freq_shift=1`; the second that of
    Improved DDPM and DiT, `flip_sin_to_cos=True, freq_shift=0`; the third is what the DiT of
    diffusers has instead of the second.

    Args:
      t: [B], int32 or float32: 0..T-1, or any real number where time is rescaled.
      features: length of the embedding, at least 4; when odd, the last entry is 0.
      form: a key of `TIME_EMBEDDINGS`.

    Returns:
      [B, features] float32.
    """
    half = features // 2
    spacings = half if form in ("cos_sin", "sin_cos_exclusive") else half - 1
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / spacings).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = (jnp.sin, jnp.cos) if form.startswith("sin") else (jnp.cos, jnp.sin)
    embedding = jnp.concatenate([wave(angles) for wave in waves], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def fourier_features(x: jax.Array, exponents: Sequence[int]) -> jax.Array:
    """Append sin(2^n π x) and cos(2^n π x) of every channel, for each n.

    [B, H, W, C] -> [B, H, W, (1 + 2N) C]. With them a network sees differences of 2^-n in x, the
    least bits of an image (Kingma et al. 2021, appendix on Fourier features: n = 7, 8 of 8 bits).
    """
    angles = [2.0**n * jnp.pi * x for n in exponents]
    waves = [wave(angle) for wave in (jnp.sin, jnp.cos) for angle in angles]
    return jnp.concatenate([x, *waves], axis=-1)


def embed_time(
    t: jax.Array,
    num_sinusoids: int,
    features: int,
    *,
    form: str,
    dtype: DTypeLike,
    kernel_init: nn.initializers.Initializer = default_init,
    name: str = "temb",
) -> jax.Array:
    """Map times [B] to [B, features] by sines and cosines and two linear layers.

    `num_sinusoids` and `form` are the length and the form of the `timestep_embedding`; the layers
    are NAME_dense0 and NAME_dense1 of the calling module.
    """
    options = {"dtype": dtype, "kernel_init": kernel_init}
    temb = timestep_embedding(t, num_sinusoids, form)
    temb = nn.swish(dense(features, name=f"{name}_dense0", **options)(temb))
    return dense(features, name=f"{name}_dense1", **options)(temb)


def embed_times(
    t: jax.Array, num_sinusoids: int, features: int, *, interval: bool, **options: Any
) -> jax.Array:
    """Map times to [B, features]: `embed_time`, and with `interval` that of t - r added.

    Args:
      t: [B]; with `interval` perhaps [B, 2], t and the earlier time r. Without r it is t.
      num_sinusoids: see `embed_time`, as `features` and the options.
      features: of the result.
      interval: whether there are layers interval_dense0 and interval_dense1 of t - r.
      options: form, dtype and kernel_init.

    Source: Geng et al. 2025, Mean Flows, section 4.3.
    """
    if not interval:
        return embed_time(t, num_sinusoids, features, **options)
    t, r = (t, t) if t.ndim == 1 else (t[:, 0], t[:, 1])
    of_time = embed_time(t, num_sinusoids, features, **options)
    return of_time + embed_time(t - r, num_sinusoids, features, name="interval", **options)


class ClassEmbedding(Layer):
    """One vector per class and one for the null class, initialised from N(0, stddev^2 I).

    Without a null class, the classes are all that there is.
    """

    num_classes: int
    features: int
    dtype: DTypeLike = jnp.float32
    stddev: float = 1.0  # as in the code of Dhariwal and Nichol (2021)
    null_class: bool = True

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        """Map int [B], 0..num_classes with the null class last, to [B, features].

        Any other label gives NaN.
        """
        shape = (self.num_classes + self.null_class, self.features)
        embedding = self.param("embedding", nn.initializers.normal(self.stddev), shape, jnp.float32)
        rows = embedding.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.dtype)


def layer_norm(x: jax.Array, eps: float = EPSILON, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """y = (x - mean) / sqrt(var + eps): layer normalisation without scale and bias.

    Ba, Kiros and Hinton (2016), over the last axis of an array of any float type, in float32 as in
    `GroupNorm`; returns the same shape in `dtype`.
    """
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)).astype(dtype)


class LayerNorm(Layer):
    """y = (x - mean) / sqrt(var + eps) * scale + bias, over the last axis, in float32."""

    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise [..., C] of any float type; return the same shape in `dtype`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        lead = (None,) * (x.ndim - 1)
        return (layer_norm(x, self.eps) * scale[lead] + bias[lead]).astype(self.dtype)


class GroupNorm(Layer):
    """y = (x - mean) / sqrt(var + eps) * scale + bias, over groups of channels (Wu and He 2018).

    The mean and the variance of a group are over its channels and all pixels, in float32 whatever
    `dtype` is.
    """

    eps: float = EPSILON
    dtype: DTypeLike = jnp.float32
    groups: int = NUM_GROUPS  # a divisor of the channels
    smallest: int = 1  # channels of a group: there are fewer groups where it would have fewer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise [B, H, W, C] of any float type; return the same shape in `dtype`."""
        channels = x.shape[-1]
        groups = min(self.groups, channels // self.smallest)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        # two passes, since E[x^2] - E[x]^2 loses every digit where the mean is large
        x = x - group_mean(x, groups)
        inverse_std = jax.lax.rsqrt(group_mean(jnp.square(x), groups) + self.eps)
        return (x * (inverse_std * scale[None, None, None, :]) + bias[None, None, None, :]).astype(
            self.dtype
        )


def group_mean(x: jax.Array, groups: int = NUM_GROUPS) -> jax.Array:
    """Return the mean over each group, repeated for its channels: [B, H, W, C] -> [B, 1, 1, C].

    Pixels are summed first: a reduction that keeps the channels last is 3x faster on a CPU than one
    over groups of 4 or 8 neighbouring channels.
    """
    batch, _, _, channels = x.shape
    group = channels // groups
    mean = jnp.mean(x, axis=(1, 2)).reshape(batch, groups, group).mean(axis=-1)
    return jnp.repeat(mean, group, axis=-1).reshape(batch, 1, 1, channels)


class Dropout(nn.Module):
    """Dropout whose mask depends on the example's key and on the layer, not on the batch.

    The draws are thus the same however a batch is split over devices. Each layer folds the hash of
    its own path in the network into the key, so layers draw independently.
    """

    rate: float  # the probability of a zero, in [0, 1)

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Zero elements of [B, ...] with probability `rate` and divide the others by 1 - rate.

        Args:
          x: [B, ...], any float type.
          keys: [B] typed keys, one per example, already folded with the step; None for no dropout.
        """
        if keys is None or self.rate == 0.0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())

        def mask(key: jax.Array) -> jax.Array:
            return jax.random.bernoulli(
                jax.random.fold_in(key, layer), 1.0 - self.rate, x.shape[1:]
            )

        return jnp.where(jax.vmap(mask)(keys), x / (1.0 - self.rate), 0.0)


def scaled(x: jax.Array, scale: float) -> jax.Array:
    """Return x times a number, and x itself for 1."""
    return x if scale == 1.0 else x * scale


def halved(x: jax.Array, taps: tuple[float, ...] = BOX, *, padding: int | None = None) -> jax.Array:
    """Return the image filtered and every second pixel of it: [B, H, W, C] -> [B, H / 2, W / 2, C].

    Args:
      x: H and W even.
      taps: of the filter along each axis, an even number of them, which are divided by their sum;
        by default a pixel is the mean of 2x2 pixels.
      padding: zeros around x; None for as many as keep the centre of the image where it is.
    """
    if taps == BOX:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    padding = (len(taps) - 1) // 2 if padding is None else padding
    for axis in (1, 2):
        x = _filtered(x, taps, axis, (padding, padding), stride=2)
    return x


def doubled(x: jax.Array, taps: tuple[float, ...] = BOX) -> jax.Array:
    """Return the image with twice the pixels: [B, H, W, C] -> [B, 2H, 2W, C].

    Each pixel is followed by a zero along each axis, which is filtered by twice the `taps` of
    `halved`, turned round; by default this repeats each pixel 2x2.
    """
    if taps == BOX:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    for axis in (1, 2):
        interior = [(0, 0, 1 if i == axis else 0) for i in range(4)]
        spread = jax.lax.pad(x, jnp.zeros((), x.dtype), interior)
        low = len(taps) - 1 - (len(taps) - 1) // 2
        high = len(taps) - low
        x = 2 * _filtered(spread, taps[::-1], axis, (low, high), stride=1)
    return x


def _filtered(
    x: jax.Array, taps: tuple[float, ...], axis: int, padding: tuple[int, int], *, stride: int
) -> jax.Array:
    """Return y[i] = sum_k x[stride i + k] taps[k] / sum(taps), over the zero-padded axis of x."""
    x = jnp.pad(x, [padding if i == axis else (0, 0) for i in range(x.ndim)])
    size = (x.shape[axis] - len(taps)) // stride + 1
    return sum(
        jax.lax.slice_in_dim(x, k, k + stride * (size - 1) + 1, stride, axis) * (tap / sum(taps))
        for k, tap in enumerate(taps)
    )


class Upsample(nn.Module):
    """Upsampling that repeats each pixel 2x2, then a 3x3 convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        """Map [B, H, W, C] to [B, *size, C].

        Args:
          x: any float type.
          size: 2H or 2H - 1, and likewise of W: what a downsampling of stride 2 made H and W of;
            None for 2H and 2W. The repeated image is cropped before the convolution.
        """
        channels = x.shape[-1]
        kernel = self.param("kernel", default_init, (3, 3, channels, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x, kernel = x.astype(self.dtype), converted(kernel, jnp.float32, x)
        if size in (None, (2 * x.shape[1], 2 * x.shape[2])):
            y = conv_upsampled(x, kernel)
        else:
            repeated = doubled(x)[:, : size[0], : size[1]]
            y = conv2d(repeated, kernel.astype(x.dtype), padding=((1, 1), (1, 1)))
        return y + bias.astype(self.dtype)[None, None, None, :]
