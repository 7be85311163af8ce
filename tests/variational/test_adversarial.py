"""Adversarial losses: what their optimum is, and what the adaptive weight balances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from ddpm_jax.variational.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    has_started,
)

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(0, 2, (2, 3, 2, 4, 1)).astype(np.float32)


def test_the_losses_are_their_formulas_image_by_image():
    expected = [
        0.5
        * np.mean(
            [
                max(0.0, 1 - r) + max(0.0, 1 + f)
                for r, f in zip(real.ravel(), fake.ravel(), strict=True)
            ]
        )
        for real, fake in zip(np.float64(REAL), np.float64(FAKE), strict=True)
    ]
    np.testing.assert_allclose(discriminator_loss(REAL, FAKE), expected, rtol=1e-6)
    np.testing.assert_allclose(
        generator_loss(FAKE), [-np.mean(np.float64(fake)) for fake in FAKE], rtol=1e-5
    )


def test_the_best_critic_of_two_known_densities_has_a_loss_of_1_minus_their_total_variation():
    """Two Gaussians on a grid, the best logit found by search; total variation in closed form."""
    x, apart = np.linspace(-8, 9, 200), 1.3
    p, q = (stats.norm.pdf(x, loc) * (x[1] - x[0]) for loc in (0, apart))

    logit, none = jnp.linspace(-3, 3, 601).reshape(-1, 1, 1, 1), jnp.full((601, 1, 1, 1), 9.0)
    # the other one costs nothing
    of_real, of_fake = discriminator_loss(logit, -none), discriminator_loss(none, logit)
    total = np.min(p[:, None] * of_real[None] + q[:, None] * of_fake[None], axis=1).sum()
    variation = 2 * stats.norm.cdf(apart / 2) - 1
    assert total == pytest.approx(1 - variation, abs=1e-3)  # of the grid


def test_the_critic_is_pushed_only_by_patches_within_its_margin_the_autoencoder_by_all():
    of_real, of_fake = jax.grad(lambda real, fake: jnp.sum(discriminator_loss(real, fake)), (0, 1))(
        REAL, FAKE
    )
    patches = REAL[0].size
    np.testing.assert_allclose(of_real, -0.5 / patches * (REAL < 1), rtol=1e-6)
    np.testing.assert_allclose(of_fake, 0.5 / patches * (FAKE > -1), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda fake: jnp.sum(generator_loss(fake)))(FAKE), -1 / patches, rtol=1e-6
    )


def test_the_adaptive_weight_makes_both_gradients_equally_long():
    """A last layer w: L_rec = |w - a|², L_G = 3 b·w; the norms by finite differences in float64."""
    w, a, b = RNG.normal(size=(3, 5, 2))
    losses = (lambda w: np.sum((w - a) ** 2), lambda w: 3 * np.sum(b * w))
    norms = [
        np.linalg.norm(optimize.approx_fprime(w.ravel(), lambda v, f=f: f(v.reshape(w.shape))))
        for f in losses
    ]
    weight = adaptive_weight(2 * (w - a), 3 * b)
    assert weight.shape == ()
    np.testing.assert_allclose(weight, norms[0] / (norms[1] + 1e-4), rtol=1e-5)
    np.testing.assert_allclose(weight * norms[1], norms[0], rtol=1e-3)


def test_the_adaptive_weight_is_bounded_where_one_gradient_vanishes():
    w = jnp.ones((4, 3))
    assert adaptive_weight(w, 0 * w) == 1e4
    assert adaptive_weight(0 * w, w) == 0
    np.testing.assert_allclose(adaptive_weight(1e-4 * w, 0 * w), np.sqrt(12), rtol=1e-5)


def test_both_players_start_after_so_many_updates():
    assert [float(has_started(jnp.int32(step), 3)) for step in range(5)] == [0, 0, 0, 1, 1]
    assert float(has_started(jnp.int32(0), 0)) == 1
