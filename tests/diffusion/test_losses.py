"""Training losses: what is minimised, where its gradients go, and how it is weighted over t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import gaussian, likelihood, losses, parameterization, schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.parameterization import EPS, MU, PARAMETERIZATIONS, X_0
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError

T = 24
# Signal-to-noise ratios from 49 down to 0.01, on both sides of min-SNR's 5
BETAS = np.linspace(0.02, 0.3, T)
SCHEDULE = schedules.make_schedule(BETAS)
NAMES = tuple(PARAMETERIZATIONS)
every_t = jnp.arange(T)
levels = np.random.default_rng(0).integers(0, 256, (T, 2, 2, 3))
x_0 = jnp.asarray(levels / 127.5 - 1, jnp.float32)
eps = jax.random.normal(jax.random.key(0), x_0.shape)
x_t = gaussian.q_sample(SCHEDULE, x_0, every_t, eps)
snr = np.cumprod(1 - BETAS) / (1 - np.cumprod(1 - BETAS))


def compute_loss(network, **choices):
    return scored(network, SCHEDULE, **choices)


def scored(
    network,
    schedule,
    *,
    parameterization="eps",
    variance="fixed_small",
    loss="simple",
    weighting="uniform",
):
    process = make_process(Chain(BETAS), parameterization, variance)
    loss = losses.make_loss(loss, weighting, variance=process.variance)
    return losses.training_losses(network, schedule, x_0, every_t, eps, process=process, loss=loss)


def mean(x):
    return np.mean(np.asarray(x, np.float64), axis=(1, 2, 3))


def guess(x, time):
    """A wrong but reasonable x_0."""
    return jnp.tanh(x - 0.01 * time.reshape(-1, 1, 1, 1))


def network_predicting(name, x_0):
    """Return the network that predicts x_0(x_t, time) in the parameterisation `name`."""
    target = PARAMETERIZATIONS[name]

    def network(given, time):
        t = time.astype(int)
        x = given / target.network_input(SCHEDULE, jnp.ones_like(given), t)
        return parameterization.convert(SCHEDULE, x, t, x_0(x, time), source=X_0, target=target)

    return network


def network_guessing_in(name):
    """Return the network that predicts the same x_0 in the parameterisation `name`."""
    return network_predicting(name, guess)


def two_heads(value, log_variance):
    return lambda x, time: jnp.concatenate([value(x, time), log_variance(x, time)], axis=-1)


@pytest.mark.parametrize("name", NAMES)
def test_simple_loss_is_the_mean_squared_error_of_the_target(name):
    alphas_bar = np.cumprod(1 - BETAS).reshape(-1, 1, 1, 1)
    target = {
        "eps": eps,
        "x_0": x_0,
        "v": np.sqrt(alphas_bar) * eps - np.sqrt(1 - alphas_bar) * x_0,
        "mu": gaussian.q_posterior(SCHEDULE, x_0, x_t, every_t).mean,
        "edm": (x_0 - x_t * np.sqrt(alphas_bar) / (4 - 3 * alphas_bar))
        / np.sqrt((1 - alphas_bar) / (4 - 3 * alphas_bar)),
        "score": -eps,
        "velocity": eps - x_0,
    }[name]
    given = {
        "edm": x_t / np.sqrt(1 - 0.75 * alphas_bar),  # of variance 1
        "score": x_t / np.sqrt(alphas_bar),
        "velocity": x_t / (np.sqrt(alphas_bar) + np.sqrt(1 - alphas_bar)),
    }.get(name, x_t)
    result = compute_loss(lambda x, time: 0.5 * x, parameterization=name)
    np.testing.assert_allclose(result.simple, mean((target - 0.5 * given) ** 2), rtol=1e-5)
    np.testing.assert_array_equal(result.loss, result.simple)
    assert np.all(result.vlb == 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_knows_the_data_has_no_simple_loss(name):
    network = network_predicting(name, lambda x, time: x_0)
    assert np.max(compute_loss(network, parameterization=name).simple) < 1e-9


def test_bound_averaged_over_t_is_its_sum():
    """E_t[T L_t] over uniform t = Σ_t L_t, x_0 unclipped."""
    result = compute_loss(network_guessing_in("eps"), loss="vlb")
    denoiser = make_process(Chain(BETAS), "eps", "fixed_small").denoiser(
        network_guessing_in("eps"), SCHEDULE, clip="none"
    )
    terms = likelihood.bound_term(SCHEDULE, denoiser(x_t, every_t), x_0, x_t, every_t)
    assert float(np.mean(result.loss)) == pytest.approx(float(np.sum(terms)), rel=1e-5)
    np.testing.assert_array_equal(result.loss, result.vlb)


@pytest.mark.parametrize("name", NAMES)
def test_bound_does_not_depend_on_the_parameterization(name):
    result = compute_loss(
        network_guessing_in(name), parameterization=name, variance="fixed_large", loss="vlb"
    )
    expected = compute_loss(guess, parameterization="x_0", variance="fixed_large", loss="vlb")
    # two conversions, and a small difference of means
    np.testing.assert_allclose(result.vlb, expected.vlb, rtol=2e-4)


def test_hybrid_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound():
    def loss_sum(params, loss, field="loss"):
        network = two_heads(
            lambda x, _: params["value"] * x, lambda x, _: params["range"] + 0.1 * x
        )
        return jnp.sum(getattr(compute_loss(network, variance="learned_range", loss=loss), field))

    params = {"value": jnp.float32(0.7), "range": jnp.float32(0.2)}
    gradient = jax.jit(jax.grad(loss_sum), static_argnums=(1, 2))
    hybrid = gradient(params, "hybrid")
    simple, vlb = gradient(params, "vlb", "simple"), gradient(params, "vlb")
    assert float(hybrid["value"]) == pytest.approx(float(simple["value"]), rel=1e-5)
    assert float(hybrid["range"]) == pytest.approx(0.001 * float(vlb["range"]), rel=1e-5)
    assert simple["range"] == 0
    assert abs(vlb["value"]) > 1  # the bound alone would have moved the mean
    assert abs(vlb["range"]) > 1


def test_hybrid_is_the_sum_of_its_parts():
    network = two_heads(network_guessing_in("eps"), lambda x, _: jnp.sin(x))
    result = compute_loss(network, variance="learned_range", loss="hybrid")
    np.testing.assert_allclose(result.loss, result.simple + 0.001 * result.vlb, rtol=1e-6)
    np.testing.assert_allclose(
        result.vlb, compute_loss(network, variance="learned_range", loss="vlb").vlb, rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_a_weighting_scores_a_prediction_alike_in_every_parameterization(name, weighting):
    """min-SNR: min(SNR, 5) on the error of x_0.

    P2: 1 / (1 + SNR) on the error of eps, which is SNR times as large.
    """
    error = mean((x_0 - guess(x_t, every_t)) ** 2)
    expected = {"min_snr": np.minimum(snr, 5) * error, "p2": snr / (1 + snr) * error}[weighting]
    result = compute_loss(network_guessing_in(name), parameterization=name, weighting=weighting)
    # a conversion at SNR 0.01 loses two digits
    np.testing.assert_allclose(result.loss, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weighting", "name", "expected"),
    [
        ("uniform", "eps", 1 + 0 * snr),
        ("uniform", "v", 1 + 0 * snr),
        ("min_snr", "x_0", np.minimum(snr, 5)),
        ("min_snr", "eps", np.minimum(1, 5 / snr)),
        ("min_snr", "v", np.minimum(snr, 5) / (snr + 1)),
        ("p2", "eps", 1 / (1 + snr)),
    ],
)
def test_weights_are_the_papers(weighting, name, expected):
    result = losses.WEIGHTINGS[weighting](SCHEDULE, every_t, PARAMETERIZATIONS[name])
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    loss = compute_loss(lambda x, _: 0.3 * x, parameterization=name, weighting=weighting)
    np.testing.assert_allclose(loss.loss, expected * loss.simple, rtol=1e-5)


def ratios(name, num_timesteps, timesteps=None):
    """The schedule in float32; SNR_t and the papers' error ratios in float64.

    A ratio is (error of the target) / (error of x_0).
    """
    betas = schedules.make_betas(name, num_timesteps)
    single, double = (
        schedules.make_schedule(betas, timesteps=timesteps, dtype=d)
        for d in (np.float32, np.float64)
    )
    errors = {
        "eps": double.snr,
        "x_0": 1.0,
        "v": double.snr + 1,
        "mu": double.trained_mean_coef1**2,
    }
    return single, double.snr, errors


@functools.partial(jax.jit, static_argnames=("weighting", "parameterization"))
def weights_at_every_t(schedule, *, weighting, parameterization):
    return losses.WEIGHTINGS[weighting](
        schedule, jnp.arange(schedule.num_timesteps), PARAMETERIZATIONS[parameterization]
    )


@pytest.mark.parametrize("num_timesteps", [10, 100, 1000, 4000, 10_000])
@pytest.mark.parametrize("name", schedules.BETA_SCHEDULES)
def test_weights_are_the_papers_to_the_last_step_of_every_chain(name, num_timesteps):
    """Down to an SNR of 1e-88, which float32 does not have.

    At an SNR of 0 the weights of eps are their limits.
    """
    schedule, snr, errors = ratios(name, num_timesteps)
    for target, error in errors.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = {"min_snr": np.minimum(snr, 5) / error, "p2": snr / (1 + snr) / error}
        for weighting, weight in expected.items():
            weight = np.where(snr == 0, 1.0 if target == "eps" else 0.0, weight)
            found = weights_at_every_t(schedule, weighting=weighting, parameterization=target)
            # 1e-6: a few roundings of 6e-8; 1e-37: smaller numbers are 0 on most devices
            np.testing.assert_allclose(
                found, weight, rtol=1e-6, atol=1e-37, err_msg=f"{weighting} {target}"
            )


@functools.partial(jax.jit, static_argnames=("parameterization", "loss", "weighting"))
@jax.value_and_grad
def loss_sum(scale, schedule, **choices):
    result = scored(lambda x, _: scale * x, schedule, variance="fixed_large", **choices)
    return jnp.sum(result.loss)


@pytest.mark.full
@pytest.mark.parametrize(
    ("loss", "weighting"), [("simple", "min_snr"), ("simple", "p2"), ("vlb", "uniform")]
)
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_their_gradients_are_finite_to_the_end_of_every_chain(name, loss, weighting):
    for schedule in schedules.BETA_SCHEDULES:
        for num_timesteps in (24, 100, 1000, 4000, 10_000):
            rows = np.linspace(0, num_timesteps - 1, T).astype(int)
            tables = schedules.make_schedule(schedules.make_betas(schedule, num_timesteps))
            is_refused = {"eps": loss == "vlb" and tables.alphas_bar[-1] == 0}
            is_refused["score"] = tables.alphas_bar[-1] < np.finfo(np.float32).tiny
            if is_refused.get(name):
                continue  # by `make_process`
            tables = jax.tree.map(lambda table, rows=rows: table[rows], tables)
            found = loss_sum(0.3, tables, parameterization=name, loss=loss, weighting=weighting)
            assert np.all(np.isfinite(found)), (schedule, num_timesteps)


def test_weights_of_mu_are_those_of_the_trained_step_in_a_respaced_chain_too():
    schedule, snr, errors = ratios("linear", 40, timesteps=[0, 3, 4, 17, 39])
    found = losses.min_snr_weight(schedule, jnp.arange(5), MU)
    np.testing.assert_allclose(found, np.minimum(snr, 5) / errors["mu"], rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (
            lambda: losses.min_snr_weight(SCHEDULE, every_t, EPS, gamma=0.0),
            "gamma of min-SNR is 0.0: .* above 0",
        ),
        (lambda: losses.p2_weight(SCHEDULE, every_t, EPS, k=0.0), "k of P2 is 0.0: .* above 0"),
    ],
)
def test_constants_that_would_divide_by_zero_are_refused(weight, sentence):
    with pytest.raises(UsageError, match=sentence):
        weight()


def test_weightings_take_other_constants():
    np.testing.assert_allclose(
        losses.min_snr_weight(SCHEDULE, every_t, X_0, gamma=1.0), np.minimum(snr, 1), rtol=1e-5
    )
    expected = 1 / (2 + snr) ** 0.5
    np.testing.assert_allclose(
        losses.p2_weight(SCHEDULE, every_t, EPS, gamma=0.5, k=2.0), expected, rtol=1e-5
    )


def test_network_is_told_the_time_of_the_row():
    def network(x, time):
        np.testing.assert_array_equal(time, every_t)
        assert time.dtype == jnp.float32
        return x

    compute_loss(network)


@pytest.mark.parametrize("channels", [1, 6])
def test_outputs_of_the_wrong_shape_are_refused(channels):
    with pytest.raises(UsageError, match=rf"returned shape .*{channels}\) .* must return .*3\)"):
        compute_loss(lambda x, _: jnp.zeros((*x.shape[:-1], channels)))


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"loss": "simpel"}, r"Unknown loss 'simpel': .* Did you mean 'simple'\?"),
        ({"weighting": "velocity"}, "velocity is by the time of a process, and a chain of T"),
        ({"weighting": "minsnr"}, r"Unknown weighting 'minsnr': .* Did you mean 'min_snr'\?"),
        ({"parameterization": "noise"}, "Unknown parameterization 'noise': choose one of"),
        (
            {"variance": "fixedsmall"},
            r"Unknown variance 'fixedsmall': .* Did you mean 'fixed_small'\?",
        ),
        (
            {"loss": "hybrid"},
            "hybrid loss trains the variance, but fixed_small has nothing to train",
        ),
        (
            {"loss": "vlb", "weighting": "p2"},
            "bound has its own weights over t: p2 applies to the simple",
        ),
        ({"variance": "learned"}, "simple loss leaves the learned variance untrained"),
    ],
)
@pytest.mark.parametrize("weighting", ["uniform", "p2"])
def test_mistakes_are_named_before_the_network_is_asked(choices, sentence, weighting):
    def network(x, time):
        raise AssertionError("the network was evaluated")

    with pytest.raises(UsageError, match=sentence):
        compute_loss(network, **({"weighting": weighting} | choices))
