"""Colours of samples: statistics against NumPy over all pixels, and the level of the test."""

import numpy as np
import pytest

from ddpm_jax.evaluation.colour import colours, moments, shift


def _images(seed, count, tint=0.0, contrast=1.0):
    """Return images, each with its own level, contrast and tint.

    Pixels of an image are far from independent.
    """
    rng = np.random.default_rng(seed)
    level = rng.normal(120 + tint, 30, (count, 1, 1, 3))
    spread = rng.uniform(10, 40, (count, 1, 1, 1))
    pixels = level + contrast * spread * rng.uniform(-1.7, 1.7, (count, 6, 4, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def test_mean_and_standard_deviation_are_those_of_all_pixels():
    images = _images(0, 50)
    found = colours(moments(images))
    np.testing.assert_allclose(found.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, images.std(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.mean_spread, images.mean(axis=(1, 2)).std(axis=0), rtol=1e-12)
    distances = np.square(images - images.mean(axis=(0, 1, 2))).mean(axis=(1, 2))
    np.testing.assert_allclose(found.variance_spread, distances.std(axis=0), rtol=1e-10)
    assert found.count == pytest.approx(50)


def test_a_weight_of_three_is_an_image_that_is_there_three_times():
    images, weights = _images(1, 20), np.arange(20) % 4
    found, repeated = (
        colours(moments(images), weights),
        colours(moments(images.repeat(weights, axis=0))),
    )
    for name in ("mean", "std", "mean_spread", "variance_spread"):
        np.testing.assert_allclose(getattr(found, name), getattr(repeated, name), rtol=1e-12)
    # Kish's effective number of draws.
    assert found.count == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))


def test_standard_errors_of_draws_from_the_data_are_standard_normal():
    data = colours(moments(_images(2, 2000)))
    off = [shift(colours(moments(_images(seed, 64))), data) for seed in range(100, 500)]
    for found in (np.array([o.mean for o in off]), np.array([o.variance for o in off])):
        # 1,200 numbers: the standard error of their standard deviation is 2 %, that of their mean 3
        # %, that of the data they share 1/sqrt(32) of a unit in every one.
        assert np.all(np.abs(found.mean(axis=0)) < 0.5)
        np.testing.assert_allclose(found.std(axis=0), 1.0, atol=0.12)
        # Of a normal number 6e-5 are beyond 4; a mean of 64 squares has a longer tail.
        assert np.mean(np.abs(found) > 4) < 2e-3


@pytest.mark.parametrize(
    ("changes", "which", "sign"),
    [
        ({"tint": np.array([20.0, 0, 0])}, "mean", 1),
        ({"tint": np.array([-20.0, 0, 0])}, "mean", -1),
    ],
)
def test_a_tint_shows_in_its_channel(changes, which, sign):
    off = shift(colours(moments(_images(3, 64, **changes))), colours(moments(_images(4, 2000))))
    # 20 grey levels, a spread of 30 over images, 64 of them: 5.3 standard errors, give or take one
    # for each draw.
    assert sign * getattr(off, which)[0] > 3
    assert np.abs(getattr(off, which)[1:]).max() < 3


def test_too_much_contrast_shows_in_the_variance_and_not_in_the_mean():
    off = shift(colours(moments(_images(5, 64, contrast=2.0))), colours(moments(_images(4, 2000))))
    assert off.variance.min() > 4
    assert np.abs(off.mean).max() < 3


def test_a_channel_without_spread_has_no_tolerance():
    black = np.zeros((5, 2, 2, 1), np.uint8)
    assert shift(colours(moments(black)), colours(moments(black))) == (0, 0)
    assert shift(colours(moments(black + np.uint8(1))), colours(moments(black))).mean > 1e6
