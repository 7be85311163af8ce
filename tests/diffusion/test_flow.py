"""The chain in real time against its table and SciPy, the velocity against continuity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate

from ddpm_jax.diffusion import flow as flows
from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS, convert
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import UsageError

# Compiled whole: op by op each test would compile some thirty programs.
noise_level = jax.jit(flows.noise_level)

T = 1000
NAMES = ["linear", "quad", "const", "warmup10", "cosine", "scaled_linear", "sigmoid"]
LINEAR = make_schedule(make_betas("linear", T))


def schedule_betas(name):
    """A schedule of the package, or "jump", whose β rises a hundredfold in one step."""
    return np.where(np.arange(T) < 500, 1e-4, 1e-2) if name == "jump" else make_betas(name, T)


def integrated_beta(name):
    """B = -Σ log(1-β) at t = -1..T-1 in float64."""
    return np.append(0.0, -np.cumsum(np.log1p(-schedule_betas(name))))


def dense_times(per_step=7):
    return np.linspace(-1, T - 1, T * per_step + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_met_at_every_integer(name):
    schedule = make_schedule(make_betas(name, T))
    level = noise_level(flows.make_continuous(schedule), jnp.arange(T, dtype=jnp.float32))
    # An exponential of B up to 20: float32 keeps 20 * 6e-8 of it
    np.testing.assert_allclose(level.sqrt_alphas_bar, schedule.sqrt_alphas_bar, rtol=2e-6)
    np.testing.assert_allclose(
        level.sqrt_one_minus_alphas_bar, schedule.sqrt_one_minus_alphas_bar, rtol=1e-6
    )


def test_a_table_whose_last_signal_is_denormal_is_met_there_too():
    """alphas_bar of 1e-44 keeps one digit in float32; -log of it is 100.5 all the same."""
    betas = make_betas("linear", 10_000)
    found = flows.make_continuous(make_schedule(betas)).cubics[:, 0]
    np.testing.assert_allclose(found[1:], -np.cumsum(np.log1p(-betas))[:-1], rtol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, "jump"])
def test_noise_only_grows_between_the_integers(name):
    with jax.enable_x64(True):
        continuous = flows.make_continuous(make_schedule(schedule_betas(name), dtype=np.float64))
        level = jax.tree.map(np.asarray, noise_level(continuous, dense_times()))
    assert level.beta.dtype == np.float64
    assert np.all(level.beta >= 0)
    assert np.all(np.diff(level.sqrt_one_minus_alphas_bar) >= 0)
    assert level.sqrt_alphas_bar[0] == 1  # t = -1 is clean data
    assert level.sqrt_one_minus_alphas_bar[0] == 0
    # no overshoot: between two integers B stays between their values
    values, knots = -2 * np.log(level.sqrt_alphas_bar), integrated_beta(name)
    left, right = np.repeat(knots[:-1], 7), np.repeat(knots[1:], 7)
    assert np.all((values[:-1] >= left - 1e-12) & (values[:-1] <= right + 1e-12))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_beta_is_the_derivative_of_minus_log_alphas_bar(name):
    with jax.enable_x64(True):
        continuous = flows.make_continuous(make_schedule(make_betas(name, T), dtype=np.float64))
        t, h = np.linspace(-0.99, T - 1.01, 4321), 1e-4
        before, now, after = (noise_level(continuous, t + d) for d in (-h, 0, h))
        # of √ᾱ: half, over 2h
        before, after = (np.log(level.sqrt_alphas_bar) for level in (before, after))
        difference = -(after - before) / h
        # central differences: h² B''' / 6 plus 1e-15 B / h
        np.testing.assert_allclose(now.beta, difference, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "quad"])
def test_a_smooth_schedule_is_continued_as_by_a_spline(name):
    """The cubic spline through all knots has one more derivative.

    Both are O(h^4) from the true curve.
    """
    spline = scipy.interpolate.CubicSpline(np.arange(-1, T), integrated_beta(name))
    level = noise_level(
        flows.make_continuous(make_schedule(make_betas(name, T))), np.float32(dense_times())
    )
    exact = spline(dense_times())
    np.testing.assert_allclose(level.sqrt_alphas_bar, np.exp(-exact / 2), rtol=2e-6)
    np.testing.assert_allclose(level.beta, spline(dense_times(), 1), rtol=1e-3)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_parameterisation_means_at_the_integers_what_the_table_says(name):
    t = np.array([0, 1, 40, 500, 999])
    x_t, value = np.random.default_rng(0).normal(size=(2, 5, 3, 3, 2)).astype(np.float32)
    eps = flows.network_eps(
        lambda x, t: value, flows.make_continuous(LINEAR), parameterization=name
    )
    kinds = {"source": PARAMETERIZATIONS[name], "target": PARAMETERIZATIONS["eps"]}
    expected = jax.jit(functools.partial(convert, **kinds))(LINEAR, x_t, t, value)
    # mu divides by 1 - α_t = 1e-4 at t = 0 of float32 numbers near 1; the way by x_0, which is
    # expected of the others, subtracts such numbers there
    tolerance = 2e-4 if name in ("mu", "edm", "score") else 1e-5
    np.testing.assert_allclose(
        jax.jit(eps)(x_t, np.float32(t)), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_beta_of_a_step_keeps_its_digits_in_float32(name):
    """From a float64 table, the ε of μ = 0 at x = 1 is √(1-ᾱ_t) / β_t.

    A difference of the rounded levels at t and t-1 was off by 4e-4 here.
    """
    schedule = make_schedule(make_betas(name, 4000), dtype=np.float64)
    continuous = flows.make_continuous(schedule, dtype=np.float32)
    t = np.arange(4000)
    eps = flows.network_eps(lambda x, t: 0 * x, continuous, parameterization="mu")
    found = jax.jit(eps)(np.ones((4000, 1), np.float32), np.float32(t))
    expected = schedule.sqrt_one_minus_alphas_bar / schedule.betas
    # a dozen roundings of 6e-8 under a root of 1 - e^-B
    np.testing.assert_allclose(np.ravel(found), expected, rtol=3e-6)


@pytest.mark.full
def test_mu_between_the_integers_is_the_mean_of_the_step_back_of_length_one():
    """μ at real t is eq. 7 of Ho et al. between the levels at t-1 and t.

    The exact one gives the exact ε. float64.
    """
    with jax.enable_x64(True):
        data = mixtures.make_mixture(
            [0.4, 0.6], np.array([[-0.5, 0.2], [0.6, 0.0]]), [0.1, 0.02], dtype=np.float64
        )
        continuous = flows.make_continuous(make_schedule(make_betas("linear", T), dtype=np.float64))
        x, t = np.random.default_rng(0).normal(size=(4, 2)), np.array([0.5, 10.25, 300.5, 900.75])
        _, signal, noise = (np.asarray(a)[:, None] for a in noise_level(continuous, t))
        _, signal_prev, noise_prev = (
            np.asarray(a)[:, None] for a in noise_level(continuous, t - 1)
        )
        best = mixtures.optimal(data, x, signal[:, 0], noise[:, 0])
        alpha = (signal / signal_prev) ** 2
        mu = (signal_prev * (1 - alpha) * best.x_0 + np.sqrt(alpha) * noise_prev**2 * x) / noise**2
        eps = flows.network_eps(lambda x, t: mu, continuous, parameterization="mu")(x, t)
        np.testing.assert_allclose(eps, best.eps, rtol=1e-8)


def test_a_network_is_told_the_real_time_and_its_variance_channels_are_left_out():
    def network(x, t):
        assert t.dtype == jnp.float32
        return jnp.concatenate([x * t[:, None, None, None], jnp.full_like(x, jnp.nan)], axis=-1)

    eps = jax.jit(flows.network_eps(network, flows.make_continuous(LINEAR), parameterization="eps"))
    x = np.ones((2, 2, 2, 3), np.float32)
    np.testing.assert_array_equal(eps(x, np.float32([0.5, 7.25]))[:, 0, 0, 0], [0.5, 7.25])


def test_a_network_of_rescaled_times_is_told_them():
    """At integers these are `Schedule.timesteps`, used in training; between, on the line."""
    schedule = make_schedule(make_betas("cosine", 4000), time_scale=1000 / 4000)
    continuous = flows.make_continuous(schedule, time_scale=1000 / 4000)
    eps = jax.jit(
        flows.network_eps(lambda x, t: t[:, None] + 0 * x, continuous, parameterization="eps")
    )
    t = np.float32([0, 17, 3999])
    np.testing.assert_array_equal(eps(np.zeros((3, 1)), t)[:, 0], schedule.timesteps[np.int32(t)])
    np.testing.assert_allclose(eps(np.zeros((1, 1)), np.float32([17.5])), (17 + 18) / 2 / 4)
    with pytest.raises(UsageError, match="respaced"):
        flows.make_continuous(schedule)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_velocity_carries_q_t_of_a_mixture(name):
    """The continuity equation, ∂q/∂t + ∇·(q f) = 0.

    ∂/∂t log q_t(x) = -f·∇ log q_t - div f, all in float64.
    """
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        data = mixtures.make_mixture(
            [0.3, 0.7], rng.uniform(-1, 1, (2, 2)), [0.05, 0.2], dtype=np.float64
        )
        continuous = flows.make_continuous(make_schedule(make_betas(name, T), dtype=np.float64))
        velocity = flows.probability_flow(flows.mixture_eps(data, continuous), continuous).velocity

        def log_q(x, t):
            return mixtures.log_prob(
                mixtures.diffused(data, *noise_level(continuous, t)[1:]), x[None]
            )[0]

        def both_sides(x, t):
            def f(x):
                return velocity(x[None], t[None])[0]

            return jax.grad(log_q, 1)(x, t), -f(x) @ jax.grad(log_q)(x, t) - jnp.trace(
                jax.jacfwd(f)(x)
            )

        x, t = rng.normal(size=(40, 2)), rng.uniform(-0.9, T - 1, 40)
        change, transport = jax.jit(jax.vmap(both_sides))(x, t)
        np.testing.assert_allclose(change, transport, rtol=1e-8, atol=1e-12)
        assert np.abs(change).max() > 1e-3


def test_the_flow_starts_where_asked_and_ends_at_the_last_step():
    flow = flows.probability_flow(lambda x, t: x, flows.make_continuous(LINEAR), start=-0.5)
    assert (flow.start, flow.end) == (-0.5, T - 1)


def test_a_chain_without_a_flow_is_refused():
    with pytest.raises(UsageError, match="ends at alphas_bar = 0"):
        flows.make_continuous(make_schedule(make_betas("jsd", 10)))
    with pytest.raises(UsageError, match="respaced"):
        flows.make_continuous(make_schedule(make_betas("linear", 10), timesteps=[0, 5, 9]))


@pytest.mark.parametrize("start", [-1, -3.5, T - 1, float("nan")])
def test_a_start_outside_the_chain_is_refused(start):
    with pytest.raises(UsageError, match="cannot start at t"):
        flows.probability_flow(lambda x, t: x, flows.make_continuous(LINEAR), start=start)


def test_an_unknown_parameterisation_is_refused():
    with pytest.raises(UsageError, match="eps"):
        flows.network_eps(lambda x, t: x, flows.make_continuous(LINEAR), parameterization="epsilon")
