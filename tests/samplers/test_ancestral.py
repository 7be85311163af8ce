"""Ancestral sampling against the original code, algorithm 2 in float64 and known chains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, make_schedule, spaced_timesteps
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral, p_sample
from ddpm_jax.samplers.loop import sample

# Few steps of large variance: here the choice of sigma and every coefficient show, while 1000 small
# ones hide them.
COARSE_BETAS = make_betas("linear", 30, beta_start=1e-3, beta_end=0.3)


def make_keys(num_images, seed=0):
    return image_keys(jax.random.key(seed), jnp.arange(num_images))


def golden_network(x_t, time, *, learned):
    """The stand-in for a network in goldens/README.md."""
    output = jnp.tanh(0.5 * x_t + 0.001 * time[:, None, None, None])
    return jnp.concatenate([output, -4 + jnp.cos(2 * x_t)], axis=-1) if learned else output


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize(
    ("original", "parameterization"), [("eps", "eps"), ("xstart", "x_0"), ("xprev", "mu")]
)
def test_one_step_is_the_original_codes_p_sample(
    diffusion_goldens, original, parameterization, variance
):
    g = diffusion_goldens
    network = functools.partial(golden_network, learned=variance == "learned")
    denoiser = make_process(Chain(g["betas/linear"]), parameterization, variance).denoiser(
        network, make_schedule(g["betas/linear"]), clip="static"
    )
    t = jnp.asarray(g["t"])
    x_prev = p_sample(denoiser(jnp.asarray(g["q_sample"]), t), t, jnp.asarray(g["z"]))
    # Both are float32 with tables computed in float64; the values are of order 1.
    np.testing.assert_allclose(
        x_prev, g[f"{original}/{variance.replace('_', '')}/p_sample"], rtol=1e-5, atol=1e-5
    )


def test_there_is_noise_at_every_t_but_the_last():
    schedule = make_schedule(COARSE_BETAS)
    denoiser = make_process(Chain(COARSE_BETAS), "x_0", "fixed_small").denoiser(
        lambda x, _: 0 * x, schedule, clip="static"
    )
    t = jnp.array([0, 1, 29])
    x_t = jnp.ones((3, 4, 4, 1))
    with_noise, without = (
        p_sample(denoiser(x_t, t), t, z) for z in (jnp.ones_like(x_t), jnp.zeros_like(x_t))
    )
    changed = np.asarray(with_noise != without).all(axis=(1, 2, 3))
    assert changed.tolist() == [False, True, True]


@pytest.mark.parametrize("steps", [30, 7, 1])
def test_the_chain_is_algorithm_2_walked_by_a_float64_loop(steps):
    """σ_t² = β_t and a network that predicts eps, in the paper's own form of line 4."""
    timesteps = spaced_timesteps(30, steps)
    schedule = make_schedule(COARSE_BETAS, timesteps=timesteps)
    eps_theta = {
        module: lambda x, time, m=module: m.tanh(0.7 * x + 0.02 * time) for module in (jnp, np)
    }
    denoiser = make_process(Chain(COARSE_BETAS), "eps", "fixed_large").denoiser(
        lambda x, time: eps_theta[jnp](x, time[:, None, None, None]), schedule, clip="none"
    )
    keys = make_keys(3)
    x_T = initial_noise(keys, (4, 4, 2))
    actual = jax.jit(lambda x_T, keys: sample(denoiser, ancestral(schedule), x_T, keys).x_0)(
        x_T, keys
    )

    alphas_bar = np.cumprod(1 - COARSE_BETAS)[timesteps]
    betas = 1 - alphas_bar / np.append(1, alphas_bar[:-1])
    # fixed_large takes the posterior variance of t = 1 at t = 0, but no noise is added there.
    x = np.asarray(x_T, np.float64)
    for t in range(steps - 1, -1, -1):
        z = np.stack(
            [jax.random.normal(jax.random.fold_in(key, t), (4, 4, 2)) for key in keys]
        ).astype(np.float64)
        eps_hat = eps_theta[np](x, timesteps[t])
        mean = (x - betas[t] / np.sqrt(1 - alphas_bar[t]) * eps_hat) / np.sqrt(1 - betas[t])
        x = mean + np.sqrt(betas[t]) * z * (t > 0)
    # Float32 against float64: rounding of 1e-7 a step, and dividing by sqrt(alphas_bar_T) = 0.1
    # magnifies it.
    np.testing.assert_allclose(actual, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())


def sigma_squared(variance, betas, alphas_bar_prev, alphas_bar):
    small = betas * (1 - alphas_bar_prev) / (1 - alphas_bar)
    return {"fixed_small": small, "fixed_large": betas, "learned_range": np.sqrt(small * betas)}[
        variance
    ]


def exact_marginals(betas, mu, s, variance, *, x_T_mean=0.0, x_T_variance=1.0):
    """Return mean and variance at every moment of the exact ancestral chain of N(mu, s² I).

    float64, [T+1].

    Everything is linear: x̂_0 = mu + k (x_t - √ᾱ mu), k = s²√ᾱ / (s²ᾱ + 1 - ᾱ), and x_{t-1} ~ N(a
    x_t + b x̂_0, σ²) with a and b from the product of q(x_t|x_{t-1}) and q(x_{t-1}|x_0), by their
    precisions.
    """
    alphas_bar = np.cumprod(1 - betas)
    alphas_bar_prev = np.append(1, alphas_bar[:-1])
    sigma_2 = sigma_squared(variance, betas, alphas_bar_prev, alphas_bar) * (
        np.arange(len(betas)) > 0
    )
    means, variances = [x_T_mean], [x_T_variance]
    for t in range(len(betas) - 1, -1, -1):
        k = s**2 * np.sqrt(alphas_bar[t]) / (s**2 * alphas_bar[t] + 1 - alphas_bar[t])
        if t == 0:
            a, b = 0.0, 1.0
        else:
            of_x_t, of_x_0 = (
                np.sqrt(1 - betas[t]) / betas[t],
                np.sqrt(alphas_bar_prev[t]) / (1 - alphas_bar_prev[t]),
            )
            precision = (1 - betas[t]) / betas[t] + 1 / (1 - alphas_bar_prev[t])
            a, b = of_x_t / precision, of_x_0 / precision
        means.append(a * means[-1] + b * (mu + k * (means[-1] - np.sqrt(alphas_bar[t]) * mu)))
        variances.append((a + b * k) ** 2 * variances[-1] + sigma_2[t])
    return np.array(means), np.array(variances)


def gaussian_frames(
    betas, mu, s, variance, *, num_frames, x_T_mean=0.0, x_T_variance=1.0, timesteps=None
):
    """Return x_t at `num_frames` moments of 16,384 chains of one number each, [K, 16384].

    The denoiser is exact.
    """
    alphas_bar = jnp.asarray(np.cumprod(1 - betas), jnp.float32)

    def network(x_t, time):
        at = alphas_bar[time.astype(int)][:, None, None, None]
        x_0 = mu + s**2 * jnp.sqrt(at) / (s**2 * at + 1 - at) * (x_t - jnp.sqrt(at) * mu)
        return jnp.concatenate([x_0, 0 * x_0], axis=-1) if variance == "learned_range" else x_0

    schedule = make_schedule(betas, timesteps=timesteps)
    denoiser = make_process(Chain(betas), "x_0", variance).denoiser(network, schedule, clip="none")
    keys = make_keys(64)
    x_T = x_T_mean + np.sqrt(x_T_variance) * initial_noise(keys, (16, 16, 1))
    run = jax.jit(
        lambda x_T, keys: sample(denoiser, ancestral(schedule), x_T, keys, num_frames=num_frames)
    )
    return np.asarray(run(x_T, keys).frames_x_t, np.float64).reshape(num_frames, -1)


def assert_moments(frames, means, variances):
    """Assert moments within 5 standard errors.

    The seed is fixed, so the outcome is always the same.
    """
    n = frames.shape[1]
    z_mean = (frames.mean(axis=1) - means) / np.sqrt(variances / n)
    z_variance = (frames.var(axis=1) - variances) / (variances * np.sqrt(2 / n))
    assert np.abs(z_mean).max() < 5
    assert np.abs(z_variance).max() < 5


@pytest.mark.full
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_every_marginal_of_a_coarse_chain_follows_the_exact_recursion(variance):
    means, variances = exact_marginals(COARSE_BETAS, 0.3, 0.5, variance)
    frames = gaussian_frames(COARSE_BETAS, 0.3, 0.5, variance, num_frames=31)
    assert_moments(frames, means, variances)


def test_the_three_variances_are_told_apart_by_that_recursion():
    """The test above has the power that it needs.

    Midway the three chains differ by tens of standard errors.
    """
    midway = [
        exact_marginals(COARSE_BETAS, 0.3, 0.5, v)[1][20]
        for v in ("fixed_small", "learned_range", "fixed_large")
    ]
    assert np.all(np.diff(midway) / midway[0] > 3 * np.sqrt(2 / 16384))


def test_a_respaced_chain_follows_the_recursion_of_its_own_betas():
    timesteps = spaced_timesteps(30, 8)
    alphas_bar = np.cumprod(1 - COARSE_BETAS)[timesteps]
    means, variances = exact_marginals(
        1 - alphas_bar / np.append(1, alphas_bar[:-1]), 0.3, 0.5, "fixed_large"
    )
    frames = gaussian_frames(
        COARSE_BETAS, 0.3, 0.5, "fixed_large", num_frames=9, timesteps=timesteps
    )
    assert_moments(frames, means, variances)


@pytest.mark.full
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_thousand_steps_reach_the_data_distribution(variance):
    betas = make_betas("linear", 1000)
    means, variances = exact_marginals(betas, 0.3, 0.5, variance)
    # By the recursion 1000 steps leave an error of the variance of 1.6 % for fixed_small, of 0.3 %
    # for fixed_large.
    assert means[-1] == pytest.approx(0.3, abs=1e-3)
    assert variances[-1] == pytest.approx(0.25, rel=0.02)
    frames = gaussian_frames(betas, 0.3, 0.5, variance, num_frames=2)
    assert_moments(frames, means[[0, -1]], variances[[0, -1]])


@pytest.mark.full
def test_more_steps_come_nearer_to_the_data():
    errors = []
    for steps in (10, 100, 1000):
        alphas_bar = np.cumprod(1 - make_betas("linear", 1000))[spaced_timesteps(1000, steps)]
        betas = 1 - alphas_bar / np.append(1, alphas_bar[:-1])
        errors.append(abs(exact_marginals(betas, 0.3, 0.5, "fixed_large")[1][-1] - 0.25))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_fixed_large_is_exact_for_data_of_unit_variance():
    """Section 3.2: x_t keeps variance 1 for any betas.

    The last step adds no noise and so ends at alpha_0.
    """
    _, variances = exact_marginals(COARSE_BETAS, 0.0, 1.0, "fixed_large")
    np.testing.assert_allclose(variances[:-1], 1, rtol=1e-12)
    assert variances[-1] == pytest.approx(1 - COARSE_BETAS[0], rel=1e-12)
    assert exact_marginals(COARSE_BETAS, 0.0, 1.0, "fixed_small")[1][:-1].min() < 0.9
    frames = gaussian_frames(COARSE_BETAS, 0.0, 1.0, "fixed_large", num_frames=31)
    assert_moments(frames, np.zeros(31), np.append(np.ones(30), 1 - COARSE_BETAS[0]))


def test_fixed_small_is_exact_for_data_that_is_one_point():
    """Section 3.2: every x_t keeps the marginal q(x_t|x_0) for any betas.

    The chain ends at the point itself.
    """
    alphas_bar = np.cumprod(1 - COARSE_BETAS)
    start = {"x_T_mean": np.sqrt(alphas_bar[-1]) * 0.7, "x_T_variance": 1 - alphas_bar[-1]}
    q_means, q_variances = np.sqrt(alphas_bar[::-1]) * 0.7, 1 - alphas_bar[::-1]
    means, variances = exact_marginals(COARSE_BETAS, 0.7, 0.0, "fixed_small", **start)
    np.testing.assert_allclose(means[:-1], q_means, rtol=1e-12)
    np.testing.assert_allclose(variances[:-1], q_variances, rtol=1e-12)
    frames = gaussian_frames(COARSE_BETAS, 0.7, 0.0, "fixed_small", num_frames=31, **start)
    assert_moments(frames[:-1], q_means, q_variances)
    np.testing.assert_allclose(frames[-1], 0.7, rtol=1e-6)


@pytest.mark.full
def test_a_mixture_ends_with_its_weights_and_widths():
    """Data 0.3 N(-0.6, 0.1²) + 0.7 N(0.5, 0.2²), one number an image.

    The exact x̂_0 is that of a mixture.
    """
    betas = make_betas("linear", 500, beta_start=2e-4, beta_end=0.04)
    weights, means, widths = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.1, 0.2])
    alphas_bar = jnp.asarray(np.cumprod(1 - betas), jnp.float32)

    def network(x_t, time):
        at = alphas_bar[time.astype(int)][:, None, None, None]
        x_0s, log_densities = [], []
        for weight, mean, width in zip(weights, means, widths, strict=True):
            variance, centered = width**2 * at + 1 - at, x_t - jnp.sqrt(at) * mean
            x_0s.append(mean + width**2 * jnp.sqrt(at) / variance * centered)
            log_densities.append(
                jnp.log(weight) - 0.5 * jnp.log(variance) - 0.5 * centered**2 / variance
            )
        return jnp.sum(jax.nn.softmax(jnp.stack(log_densities), axis=0) * jnp.stack(x_0s), axis=0)

    schedule = make_schedule(betas)
    denoiser = make_process(Chain(betas), "x_0", "fixed_large").denoiser(
        network, schedule, clip="none"
    )
    keys = make_keys(64)
    x_T = initial_noise(keys, (16, 16, 1))
    x_0 = jax.jit(lambda x_T, keys: sample(denoiser, ancestral(schedule), x_T, keys).x_0)(x_T, keys)
    x_0 = np.asarray(x_0, np.float64).ravel()
    # 3.5 widths from one centre and 3.75 from the other
    left, right = x_0[x_0 < -0.25], x_0[x_0 >= -0.25]

    def within(value, expected, standard_error):
        # 4 standard errors, and 2 % of the width or of the weight for 500 steps in place of
        # infinitely many.
        return abs(value - expected) < 4 * standard_error + 0.02 * abs(expected)

    assert within(len(right) / len(x_0), 0.7, np.sqrt(0.3 * 0.7 / len(x_0)))
    for part, mean, width in ((left, -0.6, 0.1), (right, 0.5, 0.2)):
        assert within(part.mean(), mean, width / np.sqrt(len(part)))
        assert within(part.std(), width, width / np.sqrt(2 * len(part)))
