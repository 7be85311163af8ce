"""What a network's numbers mean, of each kind and scale, on a network whose numbers are chosen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.observation import FAMILIES

X = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 2)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 3)


def _encode(params, x, keys):
    return x[:, ::2, ::2]


def _decode(params, z, keys):
    return jnp.concatenate([jnp.repeat(jnp.repeat(z, 2, 1), 2, 2)] * params["copies"], axis=-1)


def test_a_vae_is_encoded_by_its_posterior():
    stage = FirstStage("vae", _encode, _decode, FAMILIES["gaussian"])
    mean, drawn = stage.latent({}, X), stage.latent({}, X, KEYS)
    np.testing.assert_array_equal(mean.z, X[:, ::2, ::2, :1])
    np.testing.assert_array_equal(mean.encoded.log_variance, X[:, ::2, ::2, 1:])
    noise = (drawn.z - mean.z) / np.exp(X[:, ::2, ::2, 1:] / 2)
    for i, key in enumerate(KEYS):  # each image's draw is its own
        np.testing.assert_allclose(
            noise[i], jax.random.normal(key, (2, 2, 1)), rtol=1e-4, atol=1e-5
        )
    expected = 0.5 * (np.square(mean.z) + np.exp(X[:, ::2, ::2, 1:]) - 1 - X[:, ::2, ::2, 1:])
    np.testing.assert_allclose(stage.kl(mean), expected, rtol=1e-3, atol=1e-6)


def test_an_autoencoder_has_no_prior():
    stage = FirstStage("ae", _encode, _decode, FAMILIES["gaussian"])
    latent = stage.latent({}, X)
    np.testing.assert_array_equal(latent.z, X[:, ::2, ::2])
    assert not np.any(stage.kl(latent))


def test_a_vq_vae_is_encoded_by_its_codes_each_of_log_k_nats():
    stage = FirstStage("vq", _encode, _decode, FAMILIES["gaussian"], num_codes=3)
    codebook = jnp.float32([[-0.5, 0.5], [0.5, 0.5], [0.0, -0.7]])
    latent = stage.latent({"codebook": codebook}, X)
    np.testing.assert_allclose(latent.z, codebook[latent.codes.index], atol=1e-6)
    np.testing.assert_array_equal(latent.encoded, X[:, ::2, ::2])
    np.testing.assert_allclose(
        jnp.sum(stage.kl(latent), axis=(1, 2, 3)), np.full(3, 4 * math.log(3)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("scale", "copies", "params", "expected"),
    [
        ("fixed", 1, {}, -1.5),
        ("shared", 1, {"log_scale": jnp.float32(0.25)}, 0.25),
        ("pixel", 2, {}, None),
    ],
)
def test_the_scale_is_where_it_is_said_to_be(scale, copies, params, expected):
    stage = FirstStage("ae", _encode, _decode, FAMILIES["gaussian"], scale=scale, log_scale=-1.5)
    z = X[:, ::2, ::2]
    decoded = stage.decoded(params | {"copies": copies}, z)
    location = np.repeat(np.repeat(z, 2, 1), 2, 2)
    log_scale = location if expected is None else np.float32(expected)
    np.testing.assert_array_equal(stage.image(decoded), location)
    density = stats.norm(location, np.exp(log_scale)).logpdf(X).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(stage.log_likelihood(decoded, X), density, rtol=1e-5)


def test_a_learned_scale_stays_where_float32_can_follow():
    stage = FirstStage("ae", _encode, _decode, FAMILIES["gaussian"], scale="shared")
    decoded = stage.decoded({"log_scale": jnp.float32(-100.0), "copies": 1}, X[:, ::2, ::2])
    assert decoded.log_scale.shape == (1, 1, 1, 1)
    assert np.all(np.isfinite(stage.log_likelihood(decoded, X)))


def test_vectors_of_a_vq_vae_become_its_codes_and_other_latents_stay():
    codebook, z = np.float32([[0, 0], [1, 1], [5, 5]]), np.float32([[[0.9, 1.2], [4, 2.5]]])
    nearest = FirstStage("vq", _encode, _decode, FAMILIES["gaussian"], num_codes=3).nearest_codes(
        {"codebook": codebook}, z
    )
    # of [4, 2.5]: 3² + 1.5² = 11.25 against 1 + 2.5² = 7.25
    np.testing.assert_array_equal(nearest, [[[1, 1], [5, 5]]])
    for kind in ("ae", "vae"):
        assert FirstStage(kind, _encode, _decode, FAMILIES["gaussian"]).nearest_codes({}, z) is z
