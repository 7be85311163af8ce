"""Latents of a frozen first stage, on encoders and decoders that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import normal
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.latent_space import Frozen, LatentSpace, latent_scale
from ddpm_jax.variational.observation import FAMILIES

SHAPE = (2, 2, 3)
CODEBOOK = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.float32)


def make_space(kind, encode):
    """The decoder gives the latents back as an image."""
    return LatentSpace(
        FirstStage(kind, encode, lambda params, z, keys: z, FAMILIES["gaussian"]), SHAPE
    )


def images(count, low=-0.5, high=0.5):
    return np.random.default_rng(0).uniform(low, high, (count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_decoding_undoes_the_scale(scale):
    space, x = make_space("ae", lambda params, x, keys: x), images(4)
    z = space.encode(Frozen({}, jnp.float32(scale)), x)
    np.testing.assert_allclose(z, scale * x, rtol=1e-6)
    np.testing.assert_allclose(space.decode(Frozen({}, jnp.float32(scale)), z), x, rtol=1e-6)


def test_of_a_vae_the_latent_is_a_scaled_draw_and_without_keys_the_mean():
    mean, log_variance, scale = images(5), np.float32(-1.2), jnp.float32(3.0)
    space = make_space(
        "vae",
        lambda params, x, keys: jnp.concatenate([x, jnp.full(x.shape, log_variance)], axis=-1),
    )
    keys = jax.random.split(jax.random.key(1), 5)
    z = space.encode(Frozen({}, scale), mean, keys)
    np.testing.assert_allclose(
        z, 3 * (mean + np.exp(log_variance / 2) * normal(keys, SHAPE)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(space.encode(Frozen({}, scale), mean), 3 * mean, rtol=1e-6)


def test_of_a_vq_vae_vectors_diffuse_and_codes_are_decoded():
    space, params = make_space("vq", lambda params, x, keys: x), {"codebook": jnp.asarray(CODEBOOK)}
    frozen = Frozen(params, jnp.float32(2.0))
    x = images(3, low=0.0, high=1.0)
    z = space.encode(frozen, x)
    np.testing.assert_allclose(z, 2 * x)
    nearest = CODEBOOK[(x.mean(axis=-1) > 0.5).astype(int)]  # of two codes on the diagonal
    np.testing.assert_array_equal(space.decode(frozen, z), nearest)


def test_the_scale_makes_the_standard_deviation_one():
    z = np.random.default_rng(0).normal(0.3, 7.0, (50, 12)).astype(np.float32)
    scale = latent_scale(z.sum(axis=1), np.square(z).sum(axis=1), 12)
    assert np.std(scale * z.astype(np.float64)) == pytest.approx(1.0, rel=1e-5)


def test_latents_that_do_not_vary_are_refused():
    with pytest.raises(UsageError, match=r"vary by .* only: it has learned nothing"):
        latent_scale(np.full(8, 12.0), np.full(8, 12.0), 12)
