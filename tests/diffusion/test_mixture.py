"""The analytic oracle against SciPy, Bayes' rule on a grid, autodiff and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import UsageError

# Compiled whole: op by op each test would compile some fifty programs.
diffused, log_prob, moments, optimal, reverse_posterior, score = map(
    jax.jit,
    (
        mixtures.diffused,
        mixtures.log_prob,
        mixtures.moments,
        mixtures.optimal,
        mixtures.reverse_posterior,
        mixtures.score,
    ),
)

rng = np.random.default_rng(0)
WEIGHTS, VARIANCES = np.array([0.2, 0.5, 0.3]), np.array([0.01, 0.09, 0.0025])
SCALES = np.sqrt(VARIANCES)
LINE = mixtures.make_mixture(WEIGHTS, np.array([[-0.8], [0.1], [0.7]]), VARIANCES)
PLANE = mixtures.make_mixture(WEIGHTS, rng.uniform(-1, 1, (3, 2)), VARIANCES)
IMAGES = mixtures.make_mixture(WEIGHTS, rng.uniform(-1, 1, (3, 4, 4, 1)), VARIANCES)
GRID = np.linspace(-4, 4, 80_001)  # spacing 1e-4, a hundredth of the narrowest Gaussian below

# Few steps of large variance, so that q(x_{t-1}|x_t) is visibly no Gaussian.
BETAS = make_betas("linear", 30, beta_start=1e-3, beta_end=0.3)
SCHEDULE = make_schedule(BETAS)
ALPHAS_BAR = np.cumprod(1 - BETAS)


def scipy_log_prob(mixture, x):
    """log Σ w N(x; m, v I) in float64, by SciPy."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    parts = [
        np.log(w) + scipy.stats.multivariate_normal(np.ravel(m), float(v)).logpdf(x)
        for w, m, v in zip(*mixture, strict=True)
    ]
    return scipy.special.logsumexp(np.reshape(parts, (len(mixture.weights), -1)), axis=0)


def line_density(x, alphas_bar=1.0):
    """q(x_t) of LINE in float64 by its definition."""
    scales = np.sqrt(alphas_bar * VARIANCES + 1 - alphas_bar)
    return sum(
        w * scipy.stats.norm(np.sqrt(alphas_bar) * m, s).pdf(x)
        for w, m, s in zip(WEIGHTS, (-0.8, 0.1, 0.7), scales, strict=True)
    )


@pytest.mark.parametrize("mixture", [LINE, PLANE, IMAGES], ids=["1-D", "2-D", "4x4x1"])
def test_log_prob_is_scipys(mixture):
    x = rng.normal(size=(64, *mixture.means.shape[1:])).astype(np.float32)
    # float32 sums of up to 16 squares divided by 0.0025: 1e-6 of values up to 1e4
    np.testing.assert_allclose(
        log_prob(mixture, x), scipy_log_prob(mixture, x), rtol=3e-6, atol=1e-5
    )


def test_log_prob_is_finite_where_every_density_underflows():
    far = np.full((1, 4, 4, 1), 50, np.float32)
    found = log_prob(IMAGES, far)
    np.testing.assert_allclose(found, scipy_log_prob(IMAGES, far), rtol=1e-5)
    assert found[0] < -1e5
    assert np.isfinite(score(IMAGES, far)).all()


@pytest.mark.parametrize("mixture", [LINE, PLANE, IMAGES], ids=["1-D", "2-D", "4x4x1"])
def test_score_is_the_gradient_of_log_prob(mixture):
    x = rng.normal(size=(16, *mixture.means.shape[1:])).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(log_prob(mixture, x))))(x)
    np.testing.assert_allclose(score(mixture, x), gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("t", [0, 4, 15, 29])
def test_optimal_predictions_are_bayes_rule_on_a_grid(t):
    """q(x_0|x_t) ∝ q(x_0) N(x_t; √ᾱ x_0, 1-ᾱ), summed over x_0 in float64."""
    signal, noise = np.sqrt(ALPHAS_BAR[t]), np.sqrt(1 - ALPHAS_BAR[t])
    x_t = np.linspace(-1.5, 1.5, 7)
    posterior = line_density(GRID)[None] * scipy.stats.norm(signal * GRID[None], noise).pdf(
        x_t[:, None]
    )
    density = posterior.sum(axis=1) * (GRID[1] - GRID[0])
    posterior /= posterior.sum(axis=1, keepdims=True)
    x_0, eps = (
        np.sum(posterior * f, axis=1)
        for f in (GRID[None], (x_t[:, None] - signal * GRID[None]) / noise)
    )

    levels = np.float32(np.full(7, signal)), np.float32(np.full(7, noise))
    best = optimal(LINE, np.float32(x_t[:, None]), *levels)
    # float32 responsibilities are exponentials of numbers up to a few hundred
    np.testing.assert_allclose(best.x_0[:, 0], x_0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(best.eps[:, 0], eps, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(best.v[:, 0], signal * eps - noise * x_0, rtol=2e-4, atol=2e-4)
    q_t = diffused(LINE, levels[0][0], levels[1][0])
    np.testing.assert_allclose(
        log_prob(q_t, np.float32(x_t[:, None])), np.log(density), rtol=1e-4, atol=1e-4
    )


def test_optimal_x_0_of_images_is_the_weighted_mean_of_samples():
    """E[x_0|x_t] by importance sampling.

    200,000 draws of x_0 in NumPy, each weighted by q(x_t|x_0).
    """
    signal, noise = 0.5, np.sqrt(0.75)
    k = rng.choice(3, 200_000, p=WEIGHTS)
    draws = IMAGES.means[k] + SCALES[k][:, None, None, None] * rng.normal(size=(200_000, 4, 4, 1))
    x_t = signal * draws[:1] + noise * rng.normal(size=(1, 4, 4, 1))
    log_weight = -np.sum((x_t - signal * draws) ** 2, axis=(1, 2, 3)) / (2 * noise**2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    estimate = np.einsum("n,nhwc->hwc", weight, draws)
    error = np.sqrt(np.einsum("n,nhwc->hwc", weight**2, (draws - estimate) ** 2))
    best = optimal(IMAGES, np.float32(x_t), np.float32([signal]), np.float32([noise]))
    assert np.all(np.abs(best.x_0[0] - estimate) < 4.5 * error)  # 16 pixels, 4.5 standard errors
    assert error.max() < 0.01


def test_predictions_of_one_x_t_agree_and_need_no_noise():
    x_t = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    signal, noise = np.float32([1, 0.8, 0]), np.float32([0, 0.6, 1])
    best = optimal(IMAGES, x_t, signal, noise)
    mixed = signal[:, None, None, None] * best.x_0 + noise[:, None, None, None] * best.eps
    np.testing.assert_allclose(mixed, x_t, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(best.x_0[0], x_t[0], rtol=1e-6)  # clean data is its own x_0
    mean = np.einsum("k,khwc->hwc", WEIGHTS, IMAGES.means)
    np.testing.assert_allclose(
        best.x_0[2], mean, rtol=1e-5, atol=1e-6
    )  # pure noise carries no information


@pytest.mark.full
@pytest.mark.parametrize("t", [0, 1, 10, 29])
def test_reverse_posterior_is_bayes_rule_on_a_grid(t):
    """q(x_{t-1}|x_t) ∝ q(x_{t-1}) N(x_t; √α_t x_{t-1}, β_t).

    As a curve, and its mean and variance.
    """
    x_t = np.array([-1.2, -0.3, 0.05, 0.9])
    prior = line_density(GRID, ALPHAS_BAR[t - 1] if t else 1.0)
    exact = prior[None] * scipy.stats.norm(
        np.sqrt(1 - BETAS[t]) * GRID[None], np.sqrt(BETAS[t])
    ).pdf(x_t[:, None])
    exact /= exact.sum(axis=1, keepdims=True) * (GRID[1] - GRID[0])
    steps = np.full(4, t)
    posterior = reverse_posterior(LINE, SCHEDULE, np.float32(x_t[:, None]), steps)
    sparse = GRID[::400]
    for one, curve in zip(zip(*posterior, strict=True), exact[:, ::400], strict=True):
        density = np.exp(log_prob(mixtures.GaussianMixture(*one), np.float32(sparse[:, None])))
        np.testing.assert_allclose(density, curve, rtol=1e-3, atol=1e-4 * curve.max())

    means = np.sum(exact * GRID, axis=1) * 1e-4
    variances = np.sum(exact * (GRID - means[:, None]) ** 2, axis=1) * 1e-4
    mean, variance = jax.vmap(moments)(posterior)
    np.testing.assert_allclose(mean[:, 0], means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance[:, 0], variances, rtol=1e-3)


@pytest.mark.parametrize("timesteps", [None, [0, 3, 11, 29]], ids=["whole", "respaced"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "moment_matched"])
def test_exact_denoiser_steps_to_the_mean_of_the_reverse_posterior(variance, timesteps):
    """Two roads to it: x_0 through Ho et al.'s eq. 7, and Bayes' rule for each component."""
    schedule = make_schedule(BETAS, timesteps=timesteps)
    t = np.arange(schedule.num_timesteps)
    x_t = rng.normal(size=(len(t), 4, 4, 1)).astype(np.float32)
    prediction = jax.jit(mixtures.exact_denoiser(IMAGES, schedule, variance=variance))(x_t, t)
    mean, variances = jax.jit(jax.vmap(moments))(reverse_posterior(IMAGES, schedule, x_t, t))
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-4, atol=1e-5)
    expected = {
        "moment_matched": np.log(variances),
        "fixed_small": np.reshape(schedule.posterior_log_variance_clipped, (-1, 1, 1, 1)),
        "fixed_large": np.reshape(schedule.fixed_large_log_variance, (-1, 1, 1, 1)),
    }[variance]
    np.testing.assert_allclose(
        prediction.log_variance, np.broadcast_to(expected, x_t.shape), rtol=1e-6
    )
    noise = np.reshape(schedule.sqrt_one_minus_alphas_bar, (-1, 1, 1, 1))
    signal = np.reshape(schedule.sqrt_alphas_bar, (-1, 1, 1, 1))
    np.testing.assert_allclose(
        signal * prediction.x_0 + noise * prediction.eps, x_t, rtol=1e-5, atol=1e-5
    )


def test_reverse_posterior_where_nothing_is_left_of_the_signal_is_the_step_between_two_noises():
    """√ᾱ is 1e-44 there: x_{t-1} and x_t are standard normal with covariance √α."""
    schedule = make_schedule(make_betas("const", 10_000))
    x_t = np.array([[0.4, -1.2]], np.float32)
    found = reverse_posterior(PLANE, schedule, x_t, np.array([9_999]))
    np.testing.assert_allclose(
        found.means, np.broadcast_to(np.sqrt(0.98) * x_t, (1, 3, 2)), rtol=1e-6
    )
    np.testing.assert_allclose(found.variances, np.full((1, 3), 0.02), rtol=1e-6)


def test_with_unit_variance_data_fixed_large_is_exact_and_with_a_point_fixed_small():
    """Ho et al. 2020, section 3.2: the two extremes of data that is one Gaussian.

    t = 0 is their clipped row.
    """
    t, x_t = np.arange(1, 30), rng.normal(size=(29, 2, 2, 1)).astype(np.float32)
    for name, value in (("fixed_large", 1.0), ("fixed_small", 1e-12)):
        data = mixtures.make_mixture([1.0], np.full((1, 2, 2, 1), 0.3), [value])
        exact = jax.jit(mixtures.exact_denoiser(data, SCHEDULE))(x_t, t).log_variance
        denoiser = mixtures.exact_denoiser(data, SCHEDULE, variance=name)
        fixed = jax.jit(denoiser)(x_t, t).log_variance
        np.testing.assert_allclose(exact, fixed, atol=1e-5)


@pytest.mark.slow
def test_float32_keeps_its_digits_at_the_least_noise():
    """At t = 0 of the usual schedule 1-ᾱ is 1e-4; float64 throughout is the truth."""
    betas = make_betas("linear", 1000)
    x_t = rng.normal(size=(5, 4, 4, 1))
    with jax.enable_x64(True):
        exact = mixtures.GaussianMixture(*(np.asarray(field, np.float64) for field in IMAGES))
        schedule = make_schedule(betas, dtype=np.float64)
        truth = mixtures.exact_denoiser(exact, schedule)(
            np.float64(np.float32(x_t)), jnp.zeros(5, int)
        )
        assert truth.eps.dtype == np.float64
        truth = jax.tree.map(np.asarray, truth)
    actual = mixtures.exact_denoiser(IMAGES, make_schedule(betas))(
        np.float32(x_t), jnp.zeros(5, int)
    )
    for name in ("x_0", "eps", "mean", "log_variance"):
        np.testing.assert_allclose(
            getattr(actual, name), getattr(truth, name), rtol=2e-6, atol=2e-6, err_msg=name
        )


@pytest.mark.full
def test_samples_have_the_mixtures_moments_and_components():
    keys = jax.random.split(jax.random.key(1), 40_000)
    x = np.asarray(mixtures.sample(PLANE, keys))
    mean, variance = (np.asarray(m) for m in moments(PLANE))
    np.testing.assert_allclose(mean, WEIGHTS @ PLANE.means, rtol=1e-6)
    standard_error = np.sqrt(variance / len(x))
    assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * standard_error)
    # relative error of a variance: about √(2/40000)
    np.testing.assert_allclose(x.var(axis=0), variance, rtol=0.03)
    one_dimension = mixtures.sample(LINE, keys)[:, 0]

    def cdf(x):
        return sum(
            w * scipy.stats.norm(m, s).cdf(x)
            for w, m, s in zip(WEIGHTS, (-0.8, 0.1, 0.7), SCALES, strict=True)
        )

    assert scipy.stats.kstest(np.asarray(one_dimension), cdf).pvalue > 1e-3


@pytest.mark.full
def test_a_sample_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 5)
    np.testing.assert_array_equal(
        mixtures.sample(IMAGES, keys)[3:4], mixtures.sample(IMAGES, keys[3:4])
    )


def test_weights_are_normalised_and_zero_weights_do_no_harm():
    mixture = mixtures.make_mixture([1, 3, 0], np.array([[-1.0], [1.0], [9.0]]), [0.1, 0.1, 0.1])
    np.testing.assert_allclose(mixture.weights, [0.25, 0.75, 0])
    x = np.float32([[-1], [1], [9]])
    two = mixtures.make_mixture([1, 3], np.array([[-1.0], [1.0]]), [0.1, 0.1])
    np.testing.assert_allclose(log_prob(mixture, x), log_prob(two, x), rtol=1e-6)
    assert np.isfinite(score(mixture, x)).all()


@pytest.mark.parametrize(
    ("weights", "means", "variances", "complaint"),
    [
        ([1.0], np.zeros((2, 3)), [1.0], r"shapes \(1,\), \(2, 3\) and \(1,\)"),
        ([1.0, 1.0], np.zeros(2), [1.0, 1.0], "means \\[K, \\.\\.\\.\\]"),
        ([1.0, -1.0], np.zeros((2, 3)), [1.0, 1.0], "none may be negative"),
        ([0.0, 0.0], np.zeros((2, 3)), [1.0, 1.0], "one is positive"),
        ([1.0, 1.0], np.zeros((2, 3)), [1.0, 0.0], "must be positive"),
    ],
)
def test_an_impossible_mixture_is_refused(weights, means, variances, complaint):
    with pytest.raises(UsageError, match=complaint):
        mixtures.make_mixture(weights, means, variances)


def test_an_unknown_variance_is_refused():
    with pytest.raises(UsageError, match="moment_matched"):
        mixtures.exact_denoiser(LINE, SCHEDULE, variance="moment_match")
