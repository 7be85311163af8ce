"""Traversals of a latent space: lines against NumPy, the prior's quantiles against SciPy."""

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.variational.traversal import lines, quantile_grid

RNG = np.random.default_rng(0)


def test_a_line_has_both_ends_to_the_last_bit_and_is_straight():
    first, last = RNG.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    path = np.asarray(lines(first, last, 5))
    assert path.shape == (3, 5, 2, 2, 4)
    np.testing.assert_array_equal(path[:, 0], first)
    np.testing.assert_array_equal(path[:, -1], last)
    np.testing.assert_allclose(path[:, 1], 0.75 * first + 0.25 * last, atol=1e-6)
    np.testing.assert_allclose(
        np.diff(path, axis=1), np.stack([(last - first) / 4] * 4, axis=1), atol=1e-6
    )


def test_no_point_of_a_line_is_less_probable_by_the_prior_than_its_less_probable_end():
    path = np.asarray(lines(*RNG.normal(size=(2, 50, 8)).astype(np.float32), 9))
    density = stats.norm.logpdf(path).sum(axis=-1)
    assert np.all(density >= density[:, [0, -1]].min(axis=1, keepdims=True) - 1e-4)


@pytest.mark.full
def test_the_grid_has_as_much_of_the_prior_between_its_points_and_lies_as_pictures_do():
    plane = quantile_grid(4).reshape(4, 4, 2)
    levels = stats.norm.cdf(plane)
    # to the right
    np.testing.assert_allclose(levels[2, :, 0], [0.125, 0.375, 0.625, 0.875], atol=1e-6)
    # from above
    np.testing.assert_allclose(levels[:, 1, 1], [0.875, 0.625, 0.375, 0.125], atol=1e-6)
    assert np.ptp(plane[..., 0], axis=0).max() == np.ptp(plane[..., 1], axis=1).max() == 0
