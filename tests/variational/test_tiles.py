"""Decoding in tiles: equal to the whole where a tile alone decides, a mean of tiles elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.variational.tiles import OVERLAP, decode_in_tiles, tile_starts

FACTOR = 4


def nearest(z):
    return jnp.repeat(jnp.repeat(z, FACTOR, 1), FACTOR, 2)


@pytest.mark.parametrize("tile", [2, 3, 8, 13])
@pytest.mark.parametrize("side", [1, 8, 9, 16, 31, 100])
def test_tiles_cover_a_side_and_overlap(side, tile):
    starts = tile_starts(side, tile)
    if side <= tile:
        assert starts == [0]
        return
    assert (starts[0], starts[-1]) == (0, side - tile)
    assert tile - max(np.diff(starts)) >= max(1, np.floor(OVERLAP * tile))
    assert min(np.diff(starts)) > 0


@pytest.mark.parametrize("shape", [(8, 8), (9, 20), (31, 8), (30, 30), (5, 40)])
def test_what_is_decoded_latent_by_latent_is_the_same_in_tiles(shape):
    z = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    images = jax.jit(lambda z: decode_in_tiles(nearest, z, 8))(z)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, nearest(z), atol=1e-6)


def test_one_tile_is_the_whole():
    z = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(decode_in_tiles(nearest, z, 8), nearest(z))


def test_convolutions_differ_only_where_they_reach_an_edge_inside_the_image():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 14, 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 1, 3, 2)).astype(np.float32)

    def decode(z):
        return jax.lax.conv_general_dilated(
            nearest(z), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    whole, images = decode(z), decode_in_tiles(decode, z, 8)
    assert tile_starts(14, 8) == [0, 6]
    differs = np.flatnonzero(np.abs(whole - images).max((0, 2, 3)) > 1e-5)
    np.testing.assert_array_equal(differs, [6 * FACTOR, 8 * FACTOR - 1])


def test_a_pixel_is_the_mean_of_its_tiles_by_the_distance_to_their_edges():
    """Of a decoder that sees the whole tile, against loops over tiles and pixels."""
    z = np.random.default_rng(0).normal(size=(1, 13, 18, 2)).astype(np.float32)

    def decode(z):
        return nearest(z - jnp.mean(z, (1, 2), keepdims=True))

    total, weights = np.zeros((13 * FACTOR, 18 * FACTOR, 2)), np.zeros((13 * FACTOR, 18 * FACTOR))
    for top in (0, 5):
        for left in (0, 5, 10):
            image = np.asarray(decode(z[:, top : top + 8, left : left + 8]))[0]
            for i in range(8 * FACTOR):
                for j in range(8 * FACTOR):
                    weight = 1.0
                    for at, start, side in ((i, top, 13), (j, left, 18)):
                        inside = []
                        if start > 0:
                            inside.append(at + 0.5)
                        if start + 8 < side:
                            inside.append(8 * FACTOR - at - 0.5)
                        weight *= min(inside)
                    total[top * FACTOR + i, left * FACTOR + j] += weight * image[i, j]
                    weights[top * FACTOR + i, left * FACTOR + j] += weight
    images = decode_in_tiles(decode, z, 8)
    np.testing.assert_allclose(images[0], total / weights[..., None], atol=1e-5)
