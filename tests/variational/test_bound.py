"""What training and evaluation make of a bound's terms, on numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.variational import evidence


def test_importance_weighted_is_the_log_of_the_mean_weight_without_overflow():
    weights = np.float64([[1.0, 2.0], [3.0, 6.0]])
    for shift in (0.0, 5000.0, -5000.0):
        found = evidence.importance_weighted(jnp.float32(np.log(weights) + shift))
        np.testing.assert_allclose(found, np.log([2.0, 4.0]) + shift, rtol=1e-6)


def test_free_nats_are_those_of_a_channel_over_all_its_positions():
    kl = jnp.float32([[[[0.1, 2.0], [0.3, 3.0]]], [[[1.0, 0.0], [1.0, 0.0]]]])  # [2, 1, 2, 2]
    np.testing.assert_allclose(evidence.free_nats(kl, 1.0), [1.0 + 5.0, 2.0 + 1.0])
    np.testing.assert_allclose(evidence.free_nats(kl, 0.0), np.sum(kl, axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (25, 0.5), (50, 1.0), (100, 2.0), (1000, 2.0)]
)
def test_kl_weight_rises_linearly_to_beta(step, expected):
    assert evidence.kl_weight(jnp.int32(step), beta=2.0, warmup_steps=100) == pytest.approx(
        expected
    )
    assert evidence.kl_weight(jnp.int32(step), beta=2.0, warmup_steps=0) == 2.0


def test_bits_per_dim_of_a_uniform_guess_are_eight():
    assert evidence.bits_per_dim(jnp.float32(64 * np.log(256)), 64) == pytest.approx(8)
