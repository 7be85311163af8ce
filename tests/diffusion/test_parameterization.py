"""What a network output means: conversions, variances, and the Prediction made of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, parameterization, schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.variance import VARIANCES, output_channels
from ddpm_jax.errors import UsageError

# Of moderate noise at every t, so that float32 keeps five digits through any pair of conversions.
T = 20
BETAS = np.linspace(0.02, 0.2, T)
SCHEDULE = schedules.make_schedule(BETAS)
every_t = jnp.arange(T)
x_0, eps = np.random.default_rng(0).standard_normal((2, T, 2, 2, 3))
NAMES = tuple(PARAMETERIZATIONS)


def column(values):
    return np.reshape(values, (T, 1, 1, 1))


def expected_values():
    """Each target in float64, from its definition.

    μ is by adding precisions, independent of the package's tables.
    """
    alphas_bar = column(np.cumprod(1 - BETAS))
    before = np.concatenate([[1.0], np.cumprod(1 - BETAS)[:-1]])
    x_t = np.sqrt(alphas_bar) * x_0 + np.sqrt(1 - alphas_bar) * eps
    with np.errstate(divide="ignore"):
        prior_precision = column(1 / (1 - before))
    step_precision = column((1 - BETAS) / BETAS)
    share = np.where(np.isinf(prior_precision), 1, 1 / (1 + step_precision / prior_precision))
    mu = share * column(np.sqrt(before)) * x_0 + (1 - share) * x_t / column(np.sqrt(1 - BETAS))
    v = np.sqrt(alphas_bar) * eps - np.sqrt(1 - alphas_bar) * x_0
    # Karras et al. 2022, table 1, in their coordinates
    sigma, y = np.sqrt(1 / alphas_bar - 1), x_t / np.sqrt(alphas_bar)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
    others = {"edm": (x_0 - c_skip * y) / c_out, "score": -eps, "velocity": eps - x_0}
    return x_t, {"eps": eps, "x_0": x_0, "v": v, "mu": mu, **others}


X_T, VALUES = expected_values()
x_t = jnp.asarray(X_T, jnp.float32)
values = {name: jnp.asarray(value, jnp.float32) for name, value in VALUES.items()}


@pytest.mark.parametrize(("source", "target"), [*itertools.product(NAMES, NAMES)])
def test_every_parameterization_converts_into_every_other_and_back(source, target):
    a, b = PARAMETERIZATIONS[source], PARAMETERIZATIONS[target]
    there = parameterization.convert(SCHEDULE, x_t, every_t, values[source], source=a, target=b)
    np.testing.assert_allclose(there, VALUES[target], rtol=1e-5, atol=1e-5)
    back = parameterization.convert(SCHEDULE, x_t, every_t, there, source=b, target=a)
    np.testing.assert_allclose(back, VALUES[source], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_respaced_chain_reads_the_network_as_it_was_trained(name):
    """x_0 is the true one for every target, and the mean that of the longer step."""
    kept = np.array([0, 4, 11, 19])
    respaced = schedules.make_schedule(BETAS, timesteps=kept)
    p = make_process(Chain(BETAS), name, "fixed_small").interpret(
        respaced, values[name][kept], x_t[kept], jnp.arange(4)
    )
    np.testing.assert_allclose(p.x_0, VALUES["x_0"][kept], rtol=1e-5, atol=1e-5)
    expected = gaussian.q_posterior(
        respaced, jnp.asarray(VALUES["x_0"][kept]), x_t[kept], jnp.arange(4)
    ).mean
    np.testing.assert_allclose(p.mean, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variance", VARIANCES)
def test_prediction_is_consistent(name, variance):
    """The same x_0, eps and mean from every parameterisation, and x_t = √ᾱ x_0 + √(1-ᾱ) eps."""
    output = values[name]
    if VARIANCES[variance].learned:
        output = jnp.concatenate([output, jnp.full_like(output, -0.5)], axis=-1)
    p = make_process(Chain(BETAS), name, variance).interpret(SCHEDULE, output, x_t, every_t)
    np.testing.assert_allclose(p.x_0, VALUES["x_0"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p.eps, VALUES["eps"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p.mean, VALUES["mu"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        gaussian.q_sample(SCHEDULE, p.x_0, every_t, p.eps), X_T, rtol=1e-5, atol=1e-5
    )
    assert all(field.shape == x_t.shape for field in p)


def network_log_variance(variance, second_half=None):
    output = values["eps"]
    if second_half is not None:
        output = jnp.concatenate([output, jnp.broadcast_to(second_half, output.shape)], axis=-1)
    p = make_process(Chain(BETAS), "eps", variance).interpret(SCHEDULE, output, x_t, every_t)
    return p.log_variance


def test_fixed_variances_are_the_two_bounds_of_the_paper():
    """β̃ and β; at t = 0 both take β̃ of t = 1, whose log is finite, and `posterior` β_0."""
    alphas_bar = np.cumprod(1 - BETAS)
    beta_tilde = BETAS[1:] * (1 - alphas_bar[:-1]) / (1 - alphas_bar[1:])
    small, large = np.append(beta_tilde[0], beta_tilde), np.append(beta_tilde[0], BETAS[1:])
    posterior = np.append(BETAS[0], beta_tilde)
    for variance, expected in (
        ("fixed_small", small),
        ("fixed_large", large),
        ("posterior", posterior),
    ):
        np.testing.assert_allclose(
            network_log_variance(variance)[:, 0, 0, 0], np.log(expected), rtol=1e-5
        )


def test_learned_variance_is_the_second_half_of_the_channels():
    second = jnp.sin(x_t)
    np.testing.assert_array_equal(network_log_variance("learned", second), second)


def test_learned_range_spans_beta_tilde_to_beta():
    small = column(SCHEDULE.posterior_log_variance_clipped)
    large = column(SCHEDULE.log_betas)
    at = {v: network_log_variance("learned_range", jnp.float32(v)) for v in (-1.0, 0.0, 1.0)}
    np.testing.assert_allclose(at[-1.0], np.broadcast_to(small, x_t.shape), rtol=1e-6)
    np.testing.assert_allclose(at[1.0], np.broadcast_to(large, x_t.shape), rtol=1e-6)
    np.testing.assert_allclose(at[0.0], np.broadcast_to((small + large) / 2, x_t.shape), rtol=1e-6)


def constant_network(value):
    return lambda x, time: jnp.full_like(x, value)


def denoiser(name, network, *, clip_denoised, schedule=SCHEDULE):
    return make_process(Chain(BETAS), name, "fixed_small").denoiser(
        network, schedule, clip="static" if clip_denoised else "none"
    )


def test_clipping_bounds_x_0_and_rederives_what_follows_from_it():
    p = denoiser("x_0", constant_network(1.7), clip_denoised=True)(x_t, every_t)
    assert np.all(p.x_0 == 1)
    one = jnp.ones_like(x_t)
    np.testing.assert_array_equal(p.mean, gaussian.q_posterior(SCHEDULE, one, x_t, every_t).mean)
    np.testing.assert_allclose(
        gaussian.q_sample(SCHEDULE, one, every_t, p.eps), x_t, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(
        p.log_variance[:, 0, 0, 0], SCHEDULE.posterior_log_variance_clipped
    )


def test_clipping_changes_nothing_inside_the_range():
    free, clipped = (
        denoiser("x_0", constant_network(-0.6), clip_denoised=c)(x_t, every_t)
        for c in (False, True)
    )
    for a, b in zip(free, clipped, strict=True):
        np.testing.assert_array_equal(a, b)


def test_clipping_leaves_a_predicted_mean_alone():
    p = denoiser("mu", constant_network(9.0), clip_denoised=True)(x_t, every_t)
    assert np.all(np.abs(p.x_0) <= 1)
    assert np.all(p.mean == 9)


def test_network_of_a_respaced_chain_is_told_the_time_it_was_trained_on():
    kept = schedules.make_schedule(BETAS, timesteps=[2, 11, 19])
    times = []

    def network(x, time):
        times.append(time)
        return x

    denoiser("x_0", network, clip_denoised=False, schedule=kept)(x_t[:3], jnp.array([2, 0, 1]))
    assert times[0].tolist() == [19, 2, 11]
    assert times[0].dtype == jnp.float32


@pytest.mark.parametrize("name", ["x_0", "v", "mu"])
def test_a_chain_that_destroys_the_signal_is_usable_without_eps(name):
    schedule = schedules.make_schedule(schedules.make_betas("jsd", T))
    p = denoiser(name, constant_network(0.1), clip_denoised=False, schedule=schedule)(x_t, every_t)
    assert all(np.all(np.isfinite(field)) for field in p)


@pytest.mark.parametrize(
    ("variance", "channels"), [("fixed_large", 3), ("learned", 6), ("learned_range", 6)]
)
def test_learned_variances_double_the_channels(variance, channels):
    assert output_channels(3, variance) == channels


@pytest.mark.parametrize(
    ("variance", "channels"), [("fixed_small", 6), ("learned", 3), ("learned_range", 4)]
)
def test_outputs_of_the_wrong_shape_are_refused(variance, channels):
    output = jnp.zeros((*x_t.shape[:-1], channels))
    with pytest.raises(UsageError, match=rf"{channels}\) for x_t .* variance {variance} it must"):
        make_process(Chain(BETAS), "eps", variance).interpret(SCHEDULE, output, x_t, every_t)


def jsd_with_eps():
    return denoiser(
        "eps",
        constant_network(0),
        clip_denoised=True,
        schedule=schedules.make_schedule(schedules.make_betas("jsd", 9)),
    )


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: denoiser("epsilon", None, clip_denoised=True),
            "Unknown parameterization 'epsilon': .* 'eps'",
        ),
        (
            lambda: output_channels(3, "fixed"),
            "Unknown variance 'fixed': choose one of",
        ),
        (
            lambda: make_process(Chain(BETAS), "x0"),
            r"Unknown parameterization 'x0': .* Did you mean 'x_0'\?",
        ),
        (
            lambda: make_process(Chain(BETAS), variance="fixed"),
            "Unknown variance 'fixed': choose one of",
        ),
        (
            lambda: make_process(Chain(BETAS)).denoiser(None, clip="statik"),
            r"Unknown clipping 'statik': .* Did you mean 'static'\?",
        ),
        (jsd_with_eps, "alphas_bar = 0, where eps does not determine x_0: predict x_0, v, edm or"),
    ],
)
def test_mistakes_are_named(build, sentence):
    with pytest.raises(UsageError, match=sentence):
        build()
