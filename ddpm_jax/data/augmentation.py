"""Geometric augmentation of training images on the device, told to the network (EDM).

Karras et al. (2022, appendix F.2) take over that of Karras et al. (2020, Training Generative
Adversarial Networks with Limited Data): flips, a change of size, a rotation, a stretch along an
axis and a shift. The network is given nine numbers that say what was done, so that what it learns
of the data does not leak into samples, which are made with zeros.

An image is reflected at its edges, doubled in size by the wavelet sym6, transformed by bilinear
interpolation, and halved again. Reflection and doubling, and halving and cropping, are linear maps
of an image's rows and of its columns: matrices here.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LABELS = 9  # numbers that tell a network of an augmentation
SIZE_STD, STRETCH_STD, SHIFT_STD = 0.2, 0.2, 0.125  # of log2 of factors; of the image's sides
# the decomposition filter of the wavelet sym6 (Daubechies 1992, table 6.4), with PyWavelets' sign
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
MARGIN = len(SYM6) // 4  # pixels beyond each edge that are transformed too, for halving


class Augmentation(NamedTuple):
    """What is done to B images; zeros leave an image as it is."""

    flip_x: jax.Array  # bool [B], left to right
    flip_y: jax.Array  # bool [B], top to bottom
    size: jax.Array  # [B]: larger by 2**(SIZE_STD * size)
    angle: jax.Array  # [B], in radians
    # [B]: along an axis longer by 2**(STRETCH_STD * stretch), across it as much shorter
    stretch: jax.Array
    axis: jax.Array  # [B]: the angle of that axis, in radians
    shift: jax.Array  # [B, 2], in x and y, in units of SHIFT_STD times the width and the height


def draw_augmentation(keys: jax.Array, p: float) -> Augmentation:
    """Draw an augmentation for each image, as EDM does with `--augment p`.

    An image is flipped left to right with probability 1/2 whatever p is; all else happens with
    probability p, each by itself.

    Args:
      keys: [B], typed keys, one per example.
      p: a probability.
    """

    def one(key: jax.Array) -> Augmentation:
        kinds = jax.random.split(key, 7)
        happens = jax.random.uniform(kinds[0], (6,)) < jnp.array([p, p, p, p, 0.5, p])
        flips = jax.random.bernoulli(kinds[1], shape=(2,))
        angles = jax.random.uniform(kinds[2], (2,), minval=-math.pi, maxval=math.pi)
        size, stretch = jax.random.normal(kinds[3], (2,))
        shift = jax.random.normal(kinds[4], (2,))
        return Augmentation(
            flips[0],
            flips[1] & happens[0],
            jnp.where(happens[1], size, 0.0),
            jnp.where(happens[2], angles[0], 0.0),
            jnp.where(happens[3], stretch, 0.0),
            jnp.where(happens[4], angles[1], 0.0),
            jnp.where(happens[5], shift, 0.0),
        )

    return jax.vmap(one)(keys)


def augmentation_labels(augmentation: Augmentation) -> jax.Array:
    """Return the condition of a network, float32 [B, 9]; zeros for an unchanged image."""
    flip_x, flip_y, size, angle, stretch, axis, shift = augmentation
    turned = jnp.cos(angle) - 1, jnp.sin(angle)
    stretched = stretch * jnp.cos(axis), stretch * jnp.sin(axis)
    numbers = (flip_x, flip_y, size, *turned, *stretched, shift[:, 0], shift[:, 1])
    return jnp.stack([jnp.float32(number) for number in numbers], axis=1)


def augment(images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Transform images.

    Args:
      images: [B, H, W, C] float32.
      augmentation: of each.

    Returns:
      [B, H, W, C] float32: differs from an image that is left as it is by some 1e-6.
    """
    _, height, width, _ = images.shape
    flip_x, flip_y, *_ = augmentation
    images = jnp.where(flip_x[:, None, None, None], images[:, :, ::-1], images)
    images = jnp.where(flip_y[:, None, None, None], images[:, ::-1], images)
    fine = _along_both(images, doubling(height), doubling(width))
    fine = interpolated(fine, *_sources(augmentation, fine.shape[1:3], height, width))
    return _along_both(fine, halving(height), halving(width))


def inverse_map(augmentation: Augmentation, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return where a pixel comes from: A [B, 2, 2] and b [B, 2] of A (x, y) + b.

    Coordinates are in pixels from the centre of an image, x to the right and y downwards.
    """
    _, _, size, angle, stretch, axis, shift = augmentation
    factor = jnp.exp2(STRETCH_STD * stretch)
    zeros = jnp.zeros_like(factor)
    along = jnp.stack([jnp.stack([1 / factor, zeros], -1), jnp.stack([zeros, factor], -1)], -2)
    a = _product(_rotation(-axis), _product(along, _rotation(axis)))
    a = _product(_rotation(angle), a) * jnp.exp2(-SIZE_STD * size)[:, None, None]
    moved = -SHIFT_STD * shift * jnp.array([[width, height]], jnp.float32)
    return a, jnp.sum(a * moved[:, None, :], axis=-1)


def _rotation(angle: jax.Array) -> jax.Array:
    """Return the matrices [B, 2, 2] that turn x towards y by an angle."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("bij,bjk->bik", a, b, precision="highest")


def _sources(
    augmentation: Augmentation, fine: tuple[int, int], height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Return which row and which column of fine images [B, h, w, C] each pixel to be halved has.

    Both are float [B, 2 (H + 2 MARGIN), 2 (W + 2 MARGIN)]. A fine pixel lies half of its size from
    the corner of its pixel, which is where the filter puts it.
    """
    a, b = inverse_map(augmentation, height, width)
    rows, columns = (jnp.arange(2 * (n + 2 * MARGIN)) for n in (height, width))
    y, x = (n + 1.0 - len(n) / 2 for n in (rows, columns))
    grid = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]))
    source = jnp.einsum("bij,jhw->bihw", a, grid, precision="highest") + 2 * b[:, :, None, None]
    x, y = source[:, 0], source[:, 1]
    return y + fine[0] / 2 - 1, x + fine[1] / 2 - 1


def interpolated(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return images [B, h, w, C] at rows and columns [B, H, W], bilinearly, 0 outside."""
    _, height, width, _ = images.shape
    top, left = jnp.floor(rows), jnp.floor(columns)
    total = 0.0
    for row, weight_y in ((top, top + 1 - rows), (top + 1, rows - top)):
        for column, weight_x in ((left, left + 1 - columns), (left + 1, columns - left)):
            is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            i, j = (
                jnp.clip(x, 0, n - 1).astype(jnp.int32) for x, n in ((row, height), (column, width))
            )
            pixels = jax.vmap(lambda image, i, j: image[i, j])(images, i, j)
            total += jnp.where(is_inside, weight_y * weight_x, 0.0)[..., None] * pixels
    return total


def _along_both(images: jax.Array, of_rows: np.ndarray, of_columns: np.ndarray) -> jax.Array:
    """Apply a matrix to the rows of images and one to their columns."""
    return jnp.einsum("bhwc,ih,jw->bijc", images, of_rows, of_columns, precision="highest")


@functools.cache
def doubling(size: int) -> np.ndarray:
    """Return the map from n pixels to 2 (3 n - 2): reflected once on either side, then doubled.

    Zeros are put between pixels, which are then convolved with the filter.
    """
    taps = len(SYM6)
    identity = np.eye(size)
    reflected = np.pad(identity, ((size - 1, size - 1), (0, 0)), mode="reflect")
    spread = np.zeros((2 * len(reflected) - 1 + taps, size))
    before = (taps + 1) // 2
    spread[before : before + 2 * len(reflected) - 1 : 2] = reflected
    return _filtered(spread, SYM6[::-1], 2 * len(reflected))


@functools.cache
def halving(size: int) -> np.ndarray:
    """Return the map from 2 (n + 2 MARGIN) fine pixels to n: filtered, halved and cropped."""
    fine = 2 * (size + 2 * MARGIN)
    before = (len(SYM6) - 1) // 2
    padded = np.pad(np.eye(fine), ((before, before + 1), (0, 0)))
    return _filtered(padded, SYM6, fine)[::2][MARGIN:-MARGIN]


def _filtered(signals: np.ndarray, taps: tuple[float, ...], length: int) -> np.ndarray:
    """Return sum_k signals[i + k] taps[k] for i below `length`, float32."""
    windows = (tap * signals[k : k + length] for k, tap in enumerate(taps))
    return sum(windows).astype(np.float32)
