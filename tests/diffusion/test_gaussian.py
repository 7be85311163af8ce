"""The Gaussians of the process, from nothing but the forward step and Bayes' rule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, schedules
from ddpm_jax.diffusion.parameterization import Prediction

# Compiled whole, not op by op.
q_mean_variance, q_posterior, q_sample, q_step = map(
    jax.jit, (gaussian.q_mean_variance, gaussian.q_posterior, gaussian.q_sample, gaussian.q_step)
)

T = 30
BETAS = {name: schedules.make_betas(name, T) for name in ("cosine", "jsd")} | {
    "linear": schedules.make_betas("linear", T, beta_start=1e-4, beta_end=0.3)
}
x_0_of_all = np.linspace(-1, 1, T * 4, dtype=np.float32).reshape(T, 2, 2, 1)
every_t = jnp.arange(T)


@pytest.fixture(params=BETAS)
def chain(request):
    """(betas in float64, schedule)."""
    return BETAS[request.param], schedules.make_schedule(BETAS[request.param])


def test_composing_the_forward_steps_gives_the_jump(chain):
    """x_t = √(1-β) x_{t-1} + √β ε, step by step in float64, against q(x_t|x_0).

    The steps are tested against q(x_t|x_{t-1}).
    """
    betas, schedule = chain
    x_prev = np.ones((T, 2, 2, 1), np.float32)
    step = q_step(schedule, x_prev, every_t)
    np.testing.assert_allclose(step.mean[:, 0, 0, 0], np.sqrt(1 - betas), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(step.variance), betas, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(step.log_variance), np.log(betas), rtol=1e-6, atol=1e-7)

    scale, variance = 1.0, 0.0
    jump = q_mean_variance(schedule, x_0_of_all, every_t)
    for t in range(T):
        scale, variance = np.sqrt(1 - betas[t]) * scale, (1 - betas[t]) * variance + betas[t]
        np.testing.assert_allclose(jump.mean[t], scale * x_0_of_all[t], rtol=1e-6, atol=1e-12)
        # at t = 0 the variance is 1e-4: it keeps its digits only if it is not computed as 1 -
        # alphas_bar in float32
        np.testing.assert_allclose(jump.variance[t], variance, rtol=1e-6)
        np.testing.assert_allclose(jump.log_variance[t], np.log(variance), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_timesteps", [100, 10_000])
@pytest.mark.parametrize("name", schedules.BETA_SCHEDULES)
def test_a_step_is_scaled_alike_where_nothing_is_left_of_the_signal(name, num_timesteps):
    """√(1-β_t) in float64, also where ᾱ_t is no number of float32."""
    betas = schedules.make_betas(name, num_timesteps)
    step = q_step(
        schedules.make_schedule(betas),
        np.ones((num_timesteps, 1), np.float32),
        np.arange(num_timesteps),
    )
    np.testing.assert_allclose(step.mean[:, 0], np.sqrt(1 - betas), rtol=1e-6)


def test_q_sample_is_the_mean_plus_scaled_noise(chain):
    _, schedule = chain
    eps = jax.random.normal(jax.random.key(0), x_0_of_all.shape)
    q = q_mean_variance(schedule, x_0_of_all, every_t)
    np.testing.assert_allclose(
        q_sample(schedule, x_0_of_all, every_t, eps),
        q.mean + np.sqrt(q.variance) * eps,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("t", [1, 2, 15, T - 2])
def test_posterior_is_bayes_rule_on_a_grid(chain, t):
    """q(x_{t-1}|x_t,x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0), on a grid in float64."""
    betas, schedule = chain
    x_0, x_t = -0.4, 0.7
    alpha_bar = np.prod(1 - betas[:t])
    center, width = np.sqrt(alpha_bar) * x_0, np.sqrt(1 - alpha_bar)
    grid = np.linspace(center - 12 * width, center + 12 * width, 400_001)
    log_prior = -((grid - center) ** 2) / (2 * width**2)
    log_step = -((x_t - np.sqrt(1 - betas[t]) * grid) ** 2) / (2 * betas[t])
    weight = np.exp(log_prior + log_step - np.max(log_prior + log_step))
    weight /= weight.sum()
    mean = np.sum(weight * grid)
    variance = np.sum(weight * (grid - mean) ** 2)

    one = np.ones((1, 1, 1, 1), np.float32)
    result = q_posterior(schedule, x_0 * one, x_t * one, jnp.array([t]))
    np.testing.assert_allclose(result.mean.item(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.variance.item(), variance, rtol=1e-5)
    np.testing.assert_allclose(result.log_variance.item(), np.log(variance), rtol=1e-5, atol=1e-5)


def test_posterior_is_the_product_of_gaussians_at_every_t(chain):
    """Precisions add: 1/β̃ = α/β + 1/(1-ᾱ_{t-1}); the mean is precision-weighted.

    float64, t > 0.
    """
    betas, _ = chain
    tables = schedules.make_schedule(betas, dtype=np.float64)
    alphas_bar_prev = np.cumprod(1 - betas)[:-1]
    beta = betas[1:]
    precision = (1 - beta) / beta + 1 / (1 - alphas_bar_prev)
    np.testing.assert_allclose(tables.posterior_variance[1:], 1 / precision, rtol=1e-10)
    from_x_0 = np.sqrt(alphas_bar_prev) / (1 - alphas_bar_prev) / precision
    np.testing.assert_allclose(tables.posterior_mean_coef1[1:], from_x_0, rtol=1e-10)
    np.testing.assert_allclose(
        tables.posterior_mean_coef2[1:], np.sqrt(1 - beta) / beta / precision, rtol=1e-10
    )


def test_posterior_at_the_first_step_is_the_data(chain):
    _, schedule = chain
    x_0 = x_0_of_all[:3]
    q = q_posterior(schedule, x_0, 5 + 0 * x_0, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(q.mean, x_0, rtol=1e-6)
    assert np.all(q.variance == 0)
    assert np.all(np.isfinite(q.log_variance))


def test_reverse_step_is_what_the_denoiser_says():
    x_t = x_0_of_all[:2]

    def denoiser(x, t):
        return Prediction(
            x_0=x, eps=x, mean=x * gaussian.extract(jnp.arange(9.0), t, x), log_variance=0 * x - 3
        )

    p = gaussian.p_mean_variance(denoiser, x_t, jnp.array([4, 5]))
    np.testing.assert_array_equal(p.mean, np.stack([4 * x_t[0], 5 * x_t[1]]))
    np.testing.assert_allclose(p.variance, np.exp(-3.0), rtol=1e-6)
    assert np.all(p.log_variance == -3)


def test_extract_broadcasts_over_any_rank():
    table = np.arange(10.0, dtype=np.float32)
    for shape in ((3,), (3, 2), (3, 2, 2, 1)):
        values = gaussian.extract(table, jnp.array([2, 0, 9]), jnp.zeros(shape))
        assert values.shape == (3,) + (1,) * (len(shape) - 1)
        assert np.ravel(values).tolist() == [2, 0, 9]


@pytest.mark.parametrize(
    "call",
    [
        lambda s, x, t: q_sample(s, x, t, x[:, :1]),
        lambda s, x, t: q_sample(s, x, t[:2], x),
        lambda s, x, t: q_sample(s, x, t[:, None], x),
        lambda s, x, t: q_posterior(s, x[..., :0], x, t),
        lambda s, x, t: q_step(s, x, t[:1]),
    ],
)
def test_wrong_shapes_are_refused(call):
    schedule = schedules.make_schedule(BETAS["linear"])
    with pytest.raises(AssertionError):
        call(schedule, jnp.zeros((3, 2, 2, 1)), jnp.zeros(3, jnp.int32))


def test_schedule_is_a_pytree_that_jit_takes_as_an_argument():
    schedule = schedules.make_schedule(BETAS["linear"])
    x_0, t = x_0_of_all[:4], jnp.array([0, 3, 9, 29])
    chex.assert_trees_all_equal(
        q_mean_variance(schedule, x_0, t),
        gaussian.q_mean_variance(schedule, x_0, t),
    )
