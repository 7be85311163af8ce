"""A network trained on the whole chain, in a respaced one with longer steps.

The oracle is closed: with Gaussian data N(m, s²) every reverse step is linear in x_t and of a
variance that no x_t changes, so mean and variance of the samples follow from two recursions. Of a
mixture the moments of q(x_{t-1}|x_t) are known for steps of any length.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.editing import repaint
from ddpm_jax.samplers.langevin import predictor_corrector
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.spacing import space

CHAIN = Chain(make_betas("linear", 1000))
LEARNED = make_process(CHAIN, "eps", "learned")
WIDTH = 0.5
STEPS = (1000, 250, 100, 50, 10)


def gaussian(mean=0.0, dtype=np.float32):
    return mixtures.make_mixture([1.0], np.full((1, 1, 1, 1), mean), [WIDTH**2], dtype=dtype)


def make_denoiser(data, chain, times, *, variance, parameterization="eps", dtype=np.float32):
    network = mixtures.exact_network(
        data, chain.at(dtype=dtype), parameterization=parameterization, variance=variance
    )
    schedule = chain.at(times, dtype=dtype)
    return make_process(CHAIN, parameterization, variance).denoiser(network, schedule, clip="none")


def recover_steps(denoiser, num_rows, dtype):
    """(offset, slope, variance) of every row's Gaussian step from x, float64 [N] each."""
    t = jnp.arange(num_rows)
    denoise = jax.jit(denoiser)
    at_0, at_1 = (denoise(jnp.full((num_rows, 1, 1, 1), x, dtype), t) for x in (0, 1))
    np.testing.assert_allclose(at_0.log_variance, at_1.log_variance, rtol=1e-4)
    offset, one, log_variance = (
        np.asarray(table, np.float64).ravel() for table in (at_0.mean, at_1.mean, at_0.log_variance)
    )
    return offset, one - offset, np.exp(log_variance) * (np.arange(num_rows) > 0)


def samples_mean_and_std(denoiser, num_rows, *, rows=None, dtype=np.float32):
    """Return the mean and standard deviation of samples by ancestral steps from N(0, 1).

    `rows` are those of `repaint`, with its jumps.
    """
    offset, slope, variance = recover_steps(denoiser, num_rows, dtype)
    mean, spread = 0.0, 1.0
    walk = (
        ((t, 1.0, 0.0) for t in range(num_rows - 1, -1, -1))
        if rows is None
        else zip(*rows, strict=True)
    )
    for t, scale, noise in walk:
        mean, spread = offset[t] + slope[t] * mean, slope[t] ** 2 * spread + variance[t]
        mean, spread = scale * mean, scale**2 * spread + noise**2
    return mean, np.sqrt(spread)


@pytest.mark.full
@pytest.mark.parametrize("schedule", ["linear", pytest.param("cosine", marks=pytest.mark.full)])
@pytest.mark.parametrize("parameterization", ["eps", "mu"])
def test_a_learned_variance_gives_the_width_of_the_data_in_any_number_of_steps(
    schedule, parameterization
):
    """In the float32 of the tables and of the network's output.

    Used for a longer step as it is, the variance of one gave 0.253, 0.165, 0.122 and 0.075 in place
    of 0.5.
    """
    chain = Chain(make_betas(schedule, 1000))
    for steps in STEPS:
        times = space(chain, "linspace", steps)
        denoiser = make_denoiser(
            gaussian(0.3), chain, times, variance="learned", parameterization=parameterization
        )
        mean, std = samples_mean_and_std(denoiser, steps)
        assert mean == pytest.approx(0.3, abs=0.003)  # x_T holds nothing of it
        assert std == pytest.approx(WIDTH, abs=0.001), steps


# By a recursion in float64 that shares nothing with the package; docs/samplers.md has this table.
STD = {
    "fixed_small": (0.4961, 0.4858, 0.4680, 0.4432, 0.3228),
    "fixed_large": (0.5008, 0.5033, 0.5086, 0.5176, 0.5988),
    "learned_range": (0.4999, 0.4998, 0.4994, 0.4975, 0.4015),
}


@pytest.mark.full
@pytest.mark.parametrize("variance", STD)
def test_the_other_variances_give_the_width_that_is_documented(variance):
    for steps, expected in zip(STEPS, STD[variance], strict=True):
        denoiser = make_denoiser(
            gaussian(), CHAIN, space(CHAIN, "linspace", steps), variance=variance
        )
        assert samples_mean_and_std(denoiser, steps)[1] == pytest.approx(expected, abs=0.001), steps


@pytest.mark.full
def test_where_the_step_is_the_trained_one_the_network_is_left_its_word():
    """To the last bit, in the whole chain and at respaced rows whose preceding step is kept."""
    raw = jnp.sin(jnp.arange(1000.0)).reshape(-1, 1, 1, 1)
    output, x_t = jnp.concatenate([raw, raw], axis=-1), jnp.ones_like(raw)

    def log_variance(times):
        schedule, rows = CHAIN.at(times), jnp.arange(len(times))
        prediction = LEARNED.interpret(schedule, output[times], x_t[times], rows)
        return np.asarray(prediction.log_variance).ravel()

    predicted = np.asarray(raw).ravel()
    np.testing.assert_array_equal(log_variance(np.arange(1000)), predicted)
    kept = np.array([0, 1, 2, 500, 501, 998, 999])
    same = log_variance(kept) == predicted[kept]
    np.testing.assert_array_equal(same, [True, True, True, False, True, False, True])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1000, 20, 1])
def test_what_no_variance_of_data_can_be_is_held_to_what_it_can_be(steps):
    """The clipping goes from fixed_small, x_0 known, to the step of x_0 of variance 1.

    Gradients stay finite too.
    """
    times = space(CHAIN, "trailing", steps)
    schedule, rows = CHAIN.at(times), jnp.arange(steps)
    x_t = jnp.zeros((steps, 1, 1, 1))

    def log_variance(raw):
        output = jnp.concatenate([x_t, jnp.broadcast_to(raw, x_t.shape)], axis=-1)
        return LEARNED.interpret(schedule, output, x_t, rows).log_variance.ravel()

    for raw in (-80.0, -9.0, 5.0, 80.0):
        slope = jax.jacobian(log_variance)(raw)
        assert np.isfinite(slope).all()
        assert (slope == 1).all() or steps < 1000  # training differentiates the whole chain
    if steps < 1000:
        low, high = (np.exp(np.asarray(log_variance(raw), np.float64))[1:] for raw in (-80.0, 80.0))
        np.testing.assert_allclose(low, schedule.posterior_variance[1:], rtol=1e-5)
        np.testing.assert_allclose(
            high, low + np.square(schedule.posterior_mean_coef1[1:]), rtol=1e-5
        )


MIXTURE = mixtures.make_mixture(
    [0.4, 0.6],
    np.array([[-0.8, 0.3], [0.6, -0.2]]).reshape(2, 1, 1, 2),
    [0.05, 0.1],
    dtype=np.float32,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameterization", "spacing"),
    [
        *((name, "linspace") for name in PARAMETERIZATIONS),
        ("eps", "trailing"),
        ("eps", "quadratic"),
    ],
)
def test_of_a_mixture_mean_and_variance_are_those_of_the_longer_step(parameterization, spacing):
    """Those of q(x_s|x_t) for every kept s < t, at draws of x_t.

    They are moments of a mixture, not of a Gaussian.
    """
    times = space(CHAIN, spacing, 20)
    schedule, rows = CHAIN.at(times), jnp.repeat(jnp.arange(20), 50)
    keys = jax.random.split(jax.random.key(0), 1000)
    eps = jax.random.normal(jax.random.key(1), (1000, 1, 1, 2))
    x_t = q_sample(schedule, mixtures.sample(MIXTURE, keys), rows, eps)
    denoiser = make_denoiser(
        MIXTURE, CHAIN, times, variance="learned", parameterization=parameterization
    )
    found, exact = (
        jax.jit(d)(x_t, rows) for d in (denoiser, mixtures.exact_denoiser(MIXTURE, schedule))
    )
    # Float32: μ carries x_0 in its last digits where t is large.
    np.testing.assert_allclose(
        found.mean, exact.mean, rtol=0, atol=2e-3 if parameterization == "mu" else 1e-4
    )
    np.testing.assert_allclose(found.log_variance, exact.log_variance, rtol=0, atol=2e-3)


def unconverted(data, times):
    """The denoiser that takes the variance of one step for that of a longer one."""
    network = mixtures.exact_network(data, CHAIN.at(), parameterization="eps", variance="learned")
    denoiser, timesteps = (
        make_denoiser(data, CHAIN, times, variance="learned"),
        jnp.asarray(CHAIN.at(times).timesteps),
    )
    return from_function(
        denoiser.schedule,
        lambda x_t, t: denoiser(x_t, t)._replace(
            log_variance=jnp.split(network(x_t, timesteps[t]), 2, axis=-1)[1]
        ),
    )


SAMPLERS_WITH_A_VARIANCE = {
    "ancestral": lambda times: ancestral(CHAIN.at(times)),
    "predictor_corrector": lambda times: predictor_corrector(CHAIN, times),
    "repaint": lambda times: repaint(CHAIN, times, resamplings=3),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"), [("ancestral", 10), ("predictor_corrector", 50), ("repaint", 50)]
)
def test_samplers_with_the_models_variance_walk_as_with_the_exact_one(name, steps):
    """The same noise gives the same samples.

    With the variance of one step, unconverted, the samples differ.
    """
    times = space(CHAIN, "linspace", steps)
    sampler = SAMPLERS_WITH_A_VARIANCE[name](times)
    keys = image_keys(jax.random.key(0), jnp.arange(256))
    x_T = initial_noise(keys, (1, 1, 2))

    def samples(denoiser):
        return np.asarray(
            jax.jit(lambda x_T, keys: sample(denoiser, sampler, x_T, keys).x_0)(x_T, keys)
        )

    exact = samples(mixtures.exact_denoiser(MIXTURE, sampler.schedule))
    found = samples(make_denoiser(MIXTURE, CHAIN, times, variance="learned"))
    # A mean: between two components a path may turn on the last digit.
    assert np.abs(found - exact).mean() < 2e-3
    assert np.abs(samples(unconverted(MIXTURE, times)) - exact).mean() > 0.1


@pytest.mark.full
@pytest.mark.parametrize("steps", [250, 50, 10])
def test_repainting_nothing_leaves_the_width_of_the_data(steps):
    """Steps down and jumps up of the right width keep q(x_t) at every level, however repeated."""
    times = space(CHAIN, "linspace", steps)
    denoiser = make_denoiser(gaussian(), CHAIN, times, variance="learned")
    rows = repaint(CHAIN, times, resamplings=3).rows
    assert samples_mean_and_std(denoiser, steps, rows=rows)[1] == pytest.approx(WIDTH, abs=0.001)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "spacing"),
    [*((name, "linspace") for name in SAMPLERS_WITH_A_VARIANCE), ("ancestral", "karras")],
)
def test_samples_have_the_width_of_the_data(name, spacing):
    """16,384 numbers in images of 64, also between trained steps, by interpolated outputs."""
    times = space(CHAIN, spacing, 50)
    data = mixtures.make_mixture([1.0], np.zeros((1, 8, 8, 1)), [WIDTH**2])
    sampler = SAMPLERS_WITH_A_VARIANCE[name](times)
    keys = image_keys(jax.random.key(0), jnp.arange(256))
    denoiser = make_denoiser(data, CHAIN, times, variance="learned")
    run = jax.jit(lambda x_T, keys: sample(denoiser, sampler, x_T, keys).x_0)
    std = np.asarray(run(initial_noise(keys, (8, 8, 1)), keys), np.float64).std()
    # 4 standard errors, and for the corrector's own finite step 2 %.
    assert std == pytest.approx(
        WIDTH, abs=4 * WIDTH / np.sqrt(2 * 16384) + 0.01 * (name == "predictor_corrector")
    )
