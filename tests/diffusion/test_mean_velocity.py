"""Mean velocities on a Gaussian, whose flow from any time to any other is a known factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import FLOW
from ddpm_jax.diffusion.mean_velocity import adaptive_loss, mean_velocity_and_target
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

WIDTH = 0.4  # standard deviation of the data, one Gaussian round 0


def _variance(t):
    """Of z_t = (1-t) x_0 + t ε; the flow keeps z_t / √variance."""
    return (1 - t) ** 2 * WIDTH**2 + t**2


def mean_velocity(z, t, r):
    """(z_t - z_r) / (t - r) with z_r = z_t √(variance_r / variance_t), divided out."""
    t, r = t[:, None], r[:, None]
    slope = (1 + WIDTH**2) * (t + r) - 2 * WIDTH**2  # (variance_t - variance_r) / (t - r)
    later, earlier = jnp.sqrt(_variance(t)), jnp.sqrt(_variance(r))
    return z * slope / (later * (later + earlier))


@pytest.fixture(scope="module")
def drawn():
    z, t, r = (jax.random.uniform(jax.random.key(i), (64,)) for i in range(3))
    return 4 * z[:, None] - 2, jnp.maximum(t, r), jnp.minimum(t, r)


def test_the_identity_holds_for_the_mean_velocity_and_for_no_other(drawn):
    z, t, r = drawn
    velocity = mean_velocity(z, t, t)
    found, wanted = mean_velocity_and_target(mean_velocity, z, t, r, velocity)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)

    def at_one_time(z, t, r):
        return mean_velocity(z, t, t)

    found, wanted = mean_velocity_and_target(at_one_time, z, t, r, velocity)
    assert np.max(np.abs(found - wanted)) > 0.3


def test_the_derivative_is_that_along_the_flow_of_any_network(drawn):
    """Central differences of a network that is no mean velocity, in float64."""

    def network(z, t, r, xp=jnp):
        return xp.tanh(z + 2 * t[:, None]) * xp.cos(3 * r[:, None] - t[:, None])

    z, t, r = (np.asarray(a, np.float64) for a in drawn)
    v, h = np.sin(5 * z), 1e-5
    ahead, behind = (network(z + s * v, t + s, r, np) for s in (h, -h))
    found, wanted = mean_velocity_and_target(network, *drawn, jnp.asarray(v, jnp.float32))
    np.testing.assert_allclose(found, network(z, t, r, np), rtol=0, atol=1e-6)
    expected = v - (t - r)[:, None] * (ahead - behind) / (2 * h)
    np.testing.assert_allclose(wanted, expected, rtol=0, atol=5e-6)


def test_no_gradient_passes_through_target_and_weight(drawn):
    z, t, r = drawn

    def loss(scale):
        found, wanted = mean_velocity_and_target(
            lambda *args: scale * mean_velocity(*args), z, t, r, jnp.ones_like(z)
        )
        return jnp.sum(adaptive_loss(found, wanted, power=0.75, constant=1e-3)), (found, wanted)

    gradient, (found, wanted) = jax.grad(loss, has_aux=True)(jnp.float32(1.0))
    error = np.float64(found - wanted)
    expected = np.sum(2 * error * found / (error**2 + 1e-3) ** 0.75)
    assert float(gradient) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_are_at_the_end_of_the_flow_in_any_number_of_steps(steps):
    process = make_process(continuous_chain(FLOW, 1000, time_scale=10.0), "velocity")
    sampler = make_sampler("mean_flow", process.chain, steps=steps, spacing="trailing")

    def network(z, time):
        t, r = time.T / 10.0
        return mean_velocity(z, t, r)

    denoiser = process.denoiser(network, sampler.schedule, clip="none")
    x_T = jax.random.normal(jax.random.key(0), (32, 1))
    found = sample(denoiser, sampler, x_T).x_0
    np.testing.assert_allclose(found, WIDTH * x_T, rtol=0, atol=1e-5)
