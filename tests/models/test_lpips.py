"""What makes LPIPS a distance, and a loss; values are compared in tests/interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.models.lpips import Lpips, check_lpips

MODEL = Lpips(channels=((4,), (6, 5), (8,)))
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(-1, 1, (2, 2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), X, Y)


distance = jax.jit(MODEL.apply)
gradient_by_y = jax.jit(jax.grad(lambda params, y: jnp.sum(MODEL.apply(params, X, y)), argnums=1))


def test_equal_images_are_at_distance_0_others_beyond_it_and_the_order_is_all_one(params):
    # the two ways may be compiled differently
    np.testing.assert_allclose(distance(params, X, X), 0, atol=1e-12)
    there, back = distance(params, X, Y), distance(params, Y, X)
    assert np.all(there > 0)
    np.testing.assert_allclose(there, back, rtol=1e-6)


def test_a_grey_image_is_one_of_three_equal_colours(params):
    x, y = (np.repeat(image, 3, axis=-1) for image in (X, Y))
    np.testing.assert_allclose(distance(params, X, Y), distance(params, x, y), rtol=1e-6)


def test_a_pixel_where_nothing_is_active_has_a_finite_gradient(params):
    """All features of one slice are dead: a naive division gives 0/0."""
    dead = jax.tree.map(jnp.zeros_like, params["params"]["features"]["slice_1_conv_1"])
    dead["bias"] = dead["bias"] - 1.0
    weights = {
        **params["params"],
        "features": {**params["params"]["features"], "slice_1_conv_1": dead},
    }
    gradient = gradient_by_y({"params": weights}, Y)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)  # of the slice before it


def test_images_that_cannot_be_halved_so_often_are_refused():
    check_lpips(Lpips(), 16, 16)
    with pytest.raises(UsageError, match=r"at least 16x16 pixels, but these are 8x32"):
        check_lpips(Lpips(), 8, 32)
