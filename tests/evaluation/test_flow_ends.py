"""The distance to the end of a flow, on data for which the flow is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.evaluation.flow_ends import FlowMap, flow_distances

CHAIN = Chain(make_betas("linear", 1000))
SIGMAS = (0.3, 2.0, 20.0)
WIDTH = 0.5  # of data that are one Gaussian round 0: every x_0 has a known end of the flow


@pytest.fixture(scope="module")
def teacher():
    mixture = make_mixture([1.0], [[0.0, 0.0]], [WIDTH**2])
    return FlowMap(
        CHAIN, lambda schedule: exact_denoiser(mixture, schedule, variance="fixed_small")
    )


@pytest.fixture(scope="module")
def images():
    x_0, eps = (jax.random.normal(jax.random.key(i), (64, 2)) for i in (0, 1))
    return WIDTH * x_0, eps


def _end_of_the_flow(schedule):
    """x / √(σ² + width²) is constant along the flow of x = x_t / √ᾱ (Karras et al. 2022, eq. 1)."""

    def predict(x_t, t):
        signal, sigma = schedule.sqrt_alphas_bar[t][:, None], schedule.sigma[t][:, None]
        x_0 = x_t / signal * WIDTH / jnp.sqrt(sigma**2 + WIDTH**2)
        return exact_denoiser(
            make_mixture([1.0], [[0.0, 0.0]], [WIDTH**2]), schedule, variance="fixed_small"
        )(x_t, t)._replace(x_0=x_0)

    return from_function(schedule, predict)


def test_a_perfect_student_is_as_near_as_the_solver(teacher, images):
    found = flow_distances(FlowMap(CHAIN, _end_of_the_flow), teacher, *images, SIGMAS)
    np.testing.assert_array_equal(found.sigma, SIGMAS)
    assert np.all(found.student < 0.01)  # of data 0.5 wide


def test_the_teacher_by_one_evaluation_is_as_far_as_the_mean_is(teacher, images):
    """Of x = x_0 + σ ε the mean of x_0 is x w²/(w² + σ²), the end of the flow x w/√(w² + σ²)."""
    found = flow_distances(teacher, teacher, *images, SIGMAS)
    np.testing.assert_array_equal(found.student, found.teacher)
    x_0, eps = map(np.asarray, images)
    for sigma, distance in zip(SIGMAS, found.teacher, strict=True):
        share = WIDTH / np.hypot(WIDTH, sigma)
        apart = (x_0 + sigma * eps) * (share - share**2)
        assert distance == pytest.approx(np.sqrt(np.mean(apart**2)), rel=0.02)
