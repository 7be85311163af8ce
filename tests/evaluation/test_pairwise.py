"""Products and distances in tiles are those of the whole matrix, in bounded memory."""

import tracemalloc

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import pairwise

A, B = (np.random.default_rng(seed).normal(size=(n, 5)) for seed, n in ((0, 11), (1, 8)))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(pairwise, "BUFFER", 8 * 5 * 4)  # 4 elements of 5 numbers a side


def _assembled(tiles, shape):
    whole = np.full(shape, np.nan)
    for rows, columns, tile in tiles:
        assert np.isnan(whole[rows, columns]).all(), "no pair twice"
        whole[rows, columns] = tile
    return whole


def test_tiles_are_parts_of_the_matrix_of_all_pairs(small_tiles):
    products = _assembled(pairwise.product_tiles(A, B), (11, 8))
    np.testing.assert_allclose(products, A @ B.T, rtol=1e-13, atol=1e-14)
    distances = _assembled(pairwise.distance_tiles(A, B), (11, 8))
    direct = ((A[:, None] - B[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(distances, direct, rtol=1e-12)


def test_of_one_set_every_unordered_pair_is_seen(small_tiles):
    whole = _assembled(pairwise.distance_tiles(A), (11, 11))
    direct = ((A[:, None] - A[None]) ** 2).sum(axis=-1)
    upper = np.triu_indices(11)
    np.testing.assert_allclose(whole[upper], direct[upper], rtol=1e-12, atol=1e-13)
    assert np.isnan(whole[8:, :4]).all()


def test_distances_of_pixels_are_exact(small_tiles):
    x = np.random.default_rng(2).integers(0, 256, (6, 5), dtype=np.uint8)
    for rows, columns, tile in pairwise.distance_tiles(x, x[::-1]):
        direct = ((x[rows, None].astype(int) - x[::-1][None, columns]) ** 2).sum(axis=-1)
        np.testing.assert_array_equal(tile, direct)


def test_the_memory_is_that_of_a_few_tiles_whatever_the_size(monkeypatch):
    monkeypatch.setattr(pairwise, "BUFFER", 2**17)
    taken = []
    for count in (500, 2000):
        features = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
        tracemalloc.start()
        for _ in pairwise.distance_tiles(features):
            pass
        taken.append(tracemalloc.get_traced_memory()[1] - 8 * count)  # without the norms
        tracemalloc.stop()
    assert max(taken) < 6 * 2**17
    assert taken[1] < 1.2 * taken[0]


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(UsageError, match=r"of one D, got the shapes \[\[11, 5\], \[8, 4\]\]"):
        pairwise.check_feature_sets(A, B[:, :4], at_least=2, what="It")
    with pytest.raises(UsageError, match="It needs at least 9 examples of each set, got 8"):
        pairwise.check_feature_sets(A, B, at_least=9, what="It")
    for value in (np.nan, np.inf, -np.inf):
        bad = A.copy()
        bad[3, 2] = value
        with pytest.raises(UsageError, match="It: a feature is not-a-number or infinite"):
            pairwise.check_feature_sets(B, bad, at_least=2, what="It")
