"""EDM's augmentation against NVlabs/edm with given draws; identities; what is drawn."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.augmentation import (
    LABELS,
    Augmentation,
    augment,
    augmentation_labels,
    draw_augmentation,
    inverse_map,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/edm/augment.npz"


def given(arrays, p):
    """The augmentation of EDM's draws, which are in the order drawn: a value, then its chance."""
    draws = [arrays[name] for name in sorted(arrays) if name.startswith("draw_")]
    draws = [x if len(x) == 2 else x.reshape(-1) for x in draws[:-1]] + [draws[-1].reshape(-1)]
    flip_x, _, flip_y, y, size, s, angle, a, stretch, axis, t, r, shift, m = draws

    def where(happens, value):
        return jnp.float32(np.where(happens, value, 0))

    return Augmentation(
        jnp.asarray(flip_x == 1),
        jnp.asarray((flip_y == 1) & (y < p)),
        where(s < p, size),
        where(a < p, (2 * angle - 1) * np.pi),
        where(t < p, stretch),
        where(r < 0.5, (2 * axis - 1) * np.pi),
        where(m < p, shift).T,
    )


@pytest.mark.parametrize(("case", "p"), [("train_settings", 0.7), ("train_settings_p_012", 0.12)])
def test_images_and_labels_are_those_of_edm_with_its_draws(case, p):
    goldens = np.load(GOLDENS)
    start = f"{case}/"
    arrays = {k.removeprefix(start): goldens[k] for k in goldens if k.startswith(start)}
    augmentation = given(arrays, p)
    labels = augmentation_labels(augmentation)
    assert labels.shape[1] == LABELS
    np.testing.assert_allclose(labels, arrays["labels"], rtol=0, atol=1e-6)
    out = jax.jit(augment)(arrays["images"].transpose(0, 2, 3, 1), augmentation)
    np.testing.assert_allclose(out, arrays["out"].transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def left_alone(count, **changes):
    zeros = jnp.zeros(count)
    flips = jnp.zeros(count, bool)
    still = Augmentation(flips, flips, zeros, zeros, zeros, zeros, jnp.zeros((count, 2)))
    return still._replace(**changes)


def test_an_image_that_is_left_alone_is_the_same():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 6, 9, 3)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(augment)(x, left_alone(2)), x, rtol=0, atol=1e-5)
    assert not augmentation_labels(left_alone(2)).any()


def test_whole_pixels_are_shifted_exactly_and_half_a_turn_is_both_flips():
    """The wavelet is not symmetric, so that a turned image is the flipped one to 0.04 only."""
    y, x = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    image = np.float32(np.sin(2 * x + y))[None, ..., None]
    transform = jax.jit(augment)
    shifted = transform(image, left_alone(1, shift=jnp.array([[1.0, 0.0]])))  # 2 of 16 pixels
    np.testing.assert_allclose(shifted[:, :, 2:], image[:, :, :-2], rtol=0, atol=1e-5)
    turned = transform(image, left_alone(1, angle=jnp.array([np.pi])))
    np.testing.assert_allclose(turned, image[:, ::-1, ::-1], rtol=0, atol=0.05)


def test_what_is_shown_larger_comes_from_nearer_the_centre():
    a, b = inverse_map(left_alone(1, size=jnp.array([5.0])), 8, 8)  # 2 ** (0.2 * 5)
    np.testing.assert_allclose(a[0], np.eye(2) / 2, atol=1e-6)
    a, b = inverse_map(left_alone(1, shift=jnp.array([[1.0, -2.0]])), 8, 16)
    np.testing.assert_allclose(b[0], [-2.0, 2.0], atol=1e-6)  # an eighth of 16, a quarter of 8


@pytest.mark.full
def test_each_transformation_happens_with_its_probability():
    """The mean of n draws of a chance q has the error sqrt(q (1 - q) / n): five of them."""
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(draw_augmentation, static_argnums=1)(keys, 0.3)
    chances = {"flip_x": 0.5, "flip_y": 0.15, "axis": 0.5}
    for name, values in drawn._asdict().items():
        happened = np.asarray(values).reshape(len(keys), -1).any(axis=1)
        q = chances.get(name, 0.3)
        assert abs(happened.mean() - q) < 5 * (q * (1 - q) / len(keys)) ** 0.5, name
    few = jax.jit(draw_augmentation, static_argnums=1)(keys[:3], 0.3)
    np.testing.assert_array_equal(few.shift, drawn.shift[:3])
