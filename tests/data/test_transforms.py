"""Scaling and flipping on the device, against NumPy and against the meaning of the words."""

import jax
import numpy as np

from ddpm_jax.data import transforms

LEVELS = np.arange(256, dtype=np.uint8)


def test_the_range_is_that_of_the_original_code():
    expected = LEVELS.astype(np.float64) / 127.5 - 1.0
    # Two float32 roundings, of x / 127.5 < 2 and of the difference: at most one unit of 2^-23 each.
    np.testing.assert_allclose(
        jax.jit(transforms.to_model_range)(LEVELS), expected, atol=2.4e-7, rtol=0
    )
    assert transforms.to_model_range(LEVELS).dtype == np.float32
    assert transforms.to_model_range(LEVELS)[0] == -1
    assert transforms.to_model_range(LEVELS)[255] == 1


def test_to_uint8_inverts_every_level():
    for to_model_range, to_uint8 in [
        (transforms.to_model_range, transforms.to_uint8),
        (jax.jit(transforms.to_model_range), jax.jit(transforms.to_uint8)),
    ]:
        np.testing.assert_array_equal(to_uint8(to_model_range(LEVELS)), LEVELS)


def test_to_uint8_rounds_to_the_nearest_level_and_saturates():
    x = np.array(
        [-7.0, -1.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1, 0.0, 1.0, 9.0, np.inf, -np.inf], np.float32
    )
    # 127.5 ties to even
    np.testing.assert_array_equal(transforms.to_uint8(x), [0, 0, 10, 11, 128, 255, 255, 255, 0])
    assert transforms.to_uint8(x).dtype == np.uint8


def _images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 4, 2), np.uint8)


def test_a_flip_mirrors_left_and_right_or_does_nothing():
    images = _images(64)
    flipped = np.asarray(transforms.random_flip(images, jax.random.split(jax.random.key(0), 64)))
    mirrored = [
        np.array_equal(out, image[:, ::-1]) for out, image in zip(flipped, images, strict=True)
    ]
    untouched = [np.array_equal(out, image) for out, image in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert flipped.dtype == np.uint8


def test_half_of_the_images_are_flipped():
    count = 10_000
    images = np.broadcast_to(np.arange(2, dtype=np.uint8)[None, None, :, None], (count, 1, 2, 1))
    flipped = np.asarray(
        transforms.random_flip(images, jax.random.split(jax.random.key(1), count))
    )[:, 0, 0, 0]
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)  # four standard deviations


def test_a_flip_depends_on_its_own_key_and_not_on_the_batch_around_it():
    images, keys = _images(16), jax.random.split(jax.random.key(2), 16)
    whole = np.asarray(transforms.random_flip(images, keys))
    parts = [
        np.asarray(transforms.random_flip(images[i : i + 4], keys[i : i + 4]))
        for i in range(0, 16, 4)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
