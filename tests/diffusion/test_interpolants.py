"""Processes in continuous time: levels, scales, times and losses are those of the reference codes.

`goldens/edm` has the outputs of EDM's, SiT's and diffusers' own code; see goldens/README.md. They
are float32, and ours is computed in float64, so tolerances are of float32: relative to 1 + |value|.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import flow, losses, schedules
from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import EDM, INTERPOLANTS
from ddpm_jax.diffusion.level_draws import level_distribution, quantiles
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS, edm_parameterization
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import base_key

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "edm"
SETTINGS = json.loads((GOLDENS / "outputs.json").read_text())
# Compiled whole: op by op each test would compile some forty programs.
single_levels = jax.jit(schedules.single_levels)
normal_cdf = jax.jit(jax.scipy.stats.norm.cdf)
PRECONDITIONED = {"edm": "edm", "vp": "eps", "ve": "score"}  # their network -> what ours predicts


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def golden():
    """Return golden(file) -> {case: {array: values}}."""

    def read(file):
        found = {}
        for name, value in np.load(GOLDENS / f"{file}.npz").items():
            case, _, array = name.rpartition("/")
            found.setdefault(case, {})[array] = value
        return found

    return read


def check_close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def predicted(network, parameterization, levels, x):
    return jax.jit(lambda levels, x: flow.predicted(network, parameterization, levels, x))(
        levels, x
    )


def training_losses(network, u, images, noise, *, draw, times_of, process, loss):
    """Draw log σ of each image at the quantile u: (log σ, the loss of each image)."""

    def computed(u, images, noise):
        log_sigma, rows = draw(u), jnp.arange(len(images))
        levels = schedules.single_levels(-log_sigma, times_of(log_sigma))
        found = losses.training_losses(
            network, levels, images, rows, noise, process=process, loss=loss
        )
        return log_sigma, found.loss

    found = jax.jit(computed)(u, np.float64(images), np.float64(noise))
    return map(np.asarray, found)


def closed_form(case):
    a, b = case["network"]["a"], case["network"]["b"]
    return lambda x, time: jnp.tanh(a * x + b * time.reshape(-1, *(1,) * (x.ndim - 1)))


def variance_preserving(y, sigma):
    return np.float64(y) / np.sqrt(1 + np.float64(sigma).reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("case", ["edm", "edm_sigma_data_1", "vp", "ve"])
def test_preconditioning_is_that_of_the_reference(golden, case):
    expected, settings = golden("preconditioners")[case], SETTINGS["preconditioners"][case]
    kind = case.split("_")[0]
    parameterization = PARAMETERIZATIONS[PRECONDITIONED[kind]]
    if kind == "edm":
        parameterization = edm_parameterization(settings["arguments"].get("sigma_data", 0.5))
    log_sigma = jnp.asarray(np.log(np.float64(expected["sigma"])))
    chain = continuous_chain(INTERPOLANTS[kind], 1000)
    times = jax.jit(chain.network_times_of)(log_sigma)
    # VP computes its time by log(1 + σ²) in float32, of which little is left at small σ.
    check_close(times, expected["c_noise"], 3e-4 if kind == "vp" else 1e-6)
    levels = single_levels(-log_sigma, times)
    x_t, rows = variance_preserving(expected["x"], expected["sigma"]), np.arange(len(times))
    check_close(jax.jit(parameterization.network_input)(levels, x_t, rows), expected["F_input"])
    x_0, eps = predicted(closed_form(settings), parameterization, levels, x_t)
    check_close(x_0, expected["D"], 1e-5 if kind == "vp" else 1e-6)
    a, s = (
        np.reshape(of, (-1, 1, 1, 1))
        for of in (levels.sqrt_alphas_bar, np.exp(-np.asarray(levels.half_log_snr)))
    )
    np.testing.assert_allclose(x_t, a * (x_0 + s * eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "steps"), [("iddpm", 1000), ("iddpm_M_500", 500)])
def test_the_iddpm_of_edm_is_our_chain_of_cosine_betas(golden, case, steps):
    """Its levels, and the index that its network gets: t, from the other end."""
    expected = golden("preconditioners")[case]
    chain = Chain(make_betas("cosine", steps))
    sigmas = np.exp(chain.log_sigmas)
    # theirs sums float32 numbers, and so is off by up to 4.6e-4
    np.testing.assert_allclose(sigmas[::-1], expected["u"][:-1], rtol=6e-4)
    nearest = chain.nearest_steps(expected["sigma"])
    np.testing.assert_array_equal(nearest, expected["c_noise"])
    levels = single_levels(-np.log(np.float64(expected["sigma"])), np.float64(nearest))
    network = closed_form(SETTINGS["preconditioners"][case])
    x_t = variance_preserving(expected["x"], expected["sigma"])
    found, _ = predicted(network, PARAMETERIZATIONS["eps"], levels, x_t)
    check_close(found, expected["D"], 1e-5)


@pytest.mark.parametrize("case", ["edm", "edm_other", "vp", "ve"])
def test_losses_are_those_of_the_reference(golden, case):
    """Uniform weights in the units of the prediction are λ(σ) of EDM and 1/σ² of VP and VE."""
    expected, settings = golden("losses")[case], SETTINGS["losses"][case]
    kind, arguments = case.split("_")[0], settings["arguments"]
    process = make_process(
        continuous_chain(INTERPOLANTS[kind], 1000),
        PRECONDITIONED[kind],
        sigma_data=arguments.get("sigma_data", 0.5),
    )
    if kind == "edm":
        names = {"P_mean": "log_mean", "P_std": "log_std"}
        numbers = {names[name]: value for name, value in arguments.items() if name in names}
        draw = level_distribution("lognormal", process.chain, **numbers)
        u = normal_cdf(np.float64(expected["draw"].ravel()))
    else:
        draw = level_distribution("uniform", process.chain)
        u = np.float64(expected["draw"].ravel())
        u = 1 - u if kind == "vp" else u  # theirs counts τ down from 1
    log_sigma, found = training_losses(
        closed_form({"network": settings["network"]}),
        u,
        expected["images"],
        expected["noise"],
        draw=draw,
        times_of=process.chain.network_times_of,
        process=process,
        loss=make_loss("simple", variance=process.variance),
    )
    np.testing.assert_allclose(np.exp(log_sigma), expected["sigma"].ravel(), rtol=2e-6)
    check_close(found, expected["loss"].mean(axis=(1, 2, 3)), 1e-5)
    total = np.mean(found) * expected["loss"][0].size
    check_close(total, expected["loss_sum_over_batch"], 1e-5)


@pytest.mark.parametrize(("path", "name"), [("linear", "flow"), ("gvp", "cosine"), ("vp", "vp")])
def test_paths_are_those_of_sit_with_time_reversed(golden, path, name):
    goldens = golden("flow")
    expected, interpolant = goldens[path], INTERPOLANTS[name]
    time = 1 - np.float64(goldens[""]["t"])

    @jax.jit
    def computed(time):
        (a, s), (d_a, d_s) = jax.jvp(interpolant.coefficients, (time,), (jnp.ones_like(time),))
        log_sigma = interpolant.log_sigma(time)
        return a, s, -d_a, -d_s, interpolant.time(log_sigma), interpolant.scale(log_sigma)

    a, s, minus_d_a, minus_d_s, time_again, scale = map(np.asarray, computed(time))
    for found, array in (
        (a, "alpha"),
        (s, "sigma"),
        (minus_d_a, "d_alpha"),
        (minus_d_s, "d_sigma"),
    ):
        check_close(found, expected[array])
    inside = slice(1, -1)  # at the ends log σ is infinite
    np.testing.assert_allclose(time_again, time, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scale[inside], np.hypot(a, s)[inside], rtol=1e-12)


@pytest.mark.parametrize(("path", "name"), [("linear", "velocity"), ("gvp", "v")])
def test_velocities_are_those_of_sit(golden, path, name):
    """The network's velocity -> noise, score and data; theirs points from noise to data."""
    goldens = golden("flow")
    expected, rows = goldens[path], slice(1, -1)
    time = (1 - np.float64(goldens[""]["t"]))[rows]
    interpolant = INTERPOLANTS["flow" if path == "linear" else "cosine"]
    a, s = map(np.asarray, jax.jit(interpolant.coefficients)(time))
    levels = single_levels(np.log(a / s), time)
    x_t = np.float64(expected["x_t"])[rows] / np.hypot(a, s)[:, None]
    per_unit = 1 if name == "velocity" else np.pi / 2  # dx/dτ of the cosine path is (π/2) v
    value = -np.float64(goldens[""]["vector"])[rows] / per_unit
    x_0, eps = predicted(lambda x, t: value, PARAMETERIZATIONS[name], levels, x_t)
    check_close(eps, expected["noise_from_velocity"][rows], 2e-6)
    check_close(x_0, expected["data_from_velocity"][rows], 2e-6)
    score = -np.asarray(eps) / s[:, None]
    np.testing.assert_allclose(score, expected["score_from_velocity"][rows], rtol=1e-5, atol=1e-6)
    data, noise = (np.float64(goldens[""][of])[rows] for of in ("data", "noise"))
    target = jax.jit(PARAMETERIZATIONS[name].target)(levels, x_t, np.arange(len(time)), data, noise)
    check_close(-per_unit * np.asarray(target), expected["target"][rows])


@pytest.mark.parametrize(("path", "name"), [("linear", "velocity"), ("gvp", "v")])
def test_the_loss_of_a_flow_is_that_of_sit(golden, path, name):
    loss = golden("flow")["loss"]
    interpolant = INTERPOLANTS["flow" if path == "linear" else "cosine"]
    process = make_process(continuous_chain(interpolant, 1000), name)
    per_unit = 1 if name == "velocity" else np.pi / 2

    def network(x, time):
        return -jnp.tanh(0.7 * x + (1 - time).reshape(-1, 1, 1, 1) - 0.3) / per_unit

    _, found = training_losses(
        network,
        1 - np.float64(loss["uniform"]),
        loss["data"],
        loss["noise"],
        draw=level_distribution("uniform", process.chain),
        times_of=process.chain.network_times_of,
        process=process,
        loss=make_loss("simple", variance=process.variance),
    )
    check_close(per_unit**2 * found, loss[f"{path}_velocity_none"], 2e-6)


@pytest.mark.parametrize("weighting", ["none", "velocity", "likelihood"])
@pytest.mark.parametrize("prediction", ["noise", "score"])
@pytest.mark.parametrize(("path", "name"), [("linear", "flow"), ("gvp", "cosine"), ("vp", "vp")])
def test_losses_of_noise_and_score_are_those_of_sit(golden, path, name, prediction, weighting):
    """Their score is s times ours; of a flow they leave out 0.001 at both ends."""
    loss, interpolant = golden("flow")["loss"], INTERPOLANTS[name]
    ends = (None, None)
    if name != "vp":
        ends = (float(np.exp(interpolant.log_sigma(np.float64(end)))) for end in (0.001, 0.999))
    low, high = ends
    chain = continuous_chain(interpolant, 1000, sigma_min=low, sigma_max=high)
    process = make_process(chain, "eps" if prediction == "noise" else "score")

    def network(given, time):
        a, s = interpolant.coefficients(time.reshape(-1, 1, 1, 1))
        x = given * (jnp.hypot(a, s) if prediction == "noise" else a)
        out = jnp.tanh(0.7 * x + (1 - time).reshape(-1, 1, 1, 1) - 0.3)
        return out if prediction == "noise" else s * out

    _, found = training_losses(
        network,
        1 - np.float64(loss["uniform"]),
        loss["data"],
        loss["noise"],
        draw=level_distribution("uniform", chain),
        times_of=interpolant.time,
        process=process,
        loss=make_loss(
            "simple",
            weighting.replace("none", "uniform"),
            variance=process.variance,
            chain=chain,
        ),
    )
    check_close(found, loss[f"{path}_{prediction}_{weighting}"], 2e-6)


def test_the_velocity_weighs_alike_its_own_errors():
    """So with the target `velocity` of a flow, and `v` of the cosine path, it is uniform."""
    for name, prediction, expected in (("flow", "velocity", 1), ("cosine", "v", (np.pi / 2) ** 2)):
        process = make_process(continuous_chain(INTERPOLANTS[name], 100), prediction)
        schedule = jax.tree.map(jnp.asarray, process.chain.at(np.arange(99)))  # float32
        loss = make_loss("simple", "velocity", variance=process.variance, chain=process.chain)
        weights = jax.jit(loss.weight, static_argnums=2)(
            schedule, jnp.arange(99), process.parameterization
        )
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_draws_of_a_flow_are_those_of_sd3(golden):
    """Of the logit-normal, and of the distribution with heavy tails."""
    expected = golden("flow_times")[""]
    chain = continuous_chain(INTERPOLANTS["flow"], 1000)
    u = normal_cdf(np.float64(expected["normal"]))
    logit_normal = level_distribution("lognormal", chain, log_mean=0.0, log_std=1.0)
    check_close(jax.jit(lambda u: jax.nn.sigmoid(logit_normal(u)))(u), expected["t_logit_normal"])
    mode = level_distribution("mode", chain)
    u = 1 - np.float64(expected["uniform"])
    check_close(jax.jit(lambda u: jax.nn.sigmoid(mode(u)))(u), expected["t_mode"])


@pytest.mark.parametrize("shift", ["1.0", "3.0", "0.5", "exponential_0.5", "exponential_0.9"])
def test_a_shift_is_a_factor_of_sigma(golden, shift):
    expected = golden("flow_times")[""]
    name, _, number = shift.rpartition("_")
    factor = np.exp(float(number)) if name else float(number)
    chain = continuous_chain(INTERPOLANTS["flow"], 1000, shift=factor)
    sigma = np.exp(chain.log_sigmas_at(1000 * expected["t"] - 1))
    check_close(sigma / (1 + sigma), expected[f"shifted_{shift}"])


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("num_timesteps", [2, 37, 1000])
def test_times_and_levels_are_inverse_and_the_table_is_exact(name, num_timesteps):
    chain = continuous_chain(INTERPOLANTS[name], num_timesteps, shift=1.7, time_scale=1000)
    times = np.linspace(0, num_timesteps - 1, 23)
    sigmas = np.exp(chain.log_sigmas_at(times))
    np.testing.assert_allclose(
        chain.times_from_sigmas(sigmas), times, rtol=1e-9, atol=1e-9 * num_timesteps
    )
    table = chain.at(times, dtype=np.float64)
    np.testing.assert_array_equal(table.sigma, sigmas)
    np.testing.assert_allclose(table.alphas_bar, 1 / (1 + sigmas**2), rtol=1e-12)
    np.testing.assert_array_equal(table.timesteps, chain.network_times(times))
    assert np.all(np.diff(table.timesteps) > 0)
    # in float32 on the device as in float64 on the host
    found = jax.jit(chain.log_sigmas_at)(np.float32(times[:-1]))
    np.testing.assert_allclose(found, np.log(sigmas[:-1]), rtol=1e-5, atol=1e-5)


def test_a_chain_of_sigmas_has_them_and_its_own_times():
    sigmas, times = np.geomspace(0.01, 50, 9), np.linspace(3, 7, 9) ** 2
    chain = Chain.from_sigmas(sigmas, times)
    np.testing.assert_allclose(chain.at(dtype=np.float64).sigma, sigmas, rtol=1e-12)
    np.testing.assert_allclose(chain.at(dtype=np.float64).timesteps, times)
    between = chain.at(np.array([2.5]), dtype=np.float64)
    assert between.sigma == pytest.approx(np.sqrt(sigmas[2] * sigmas[3]), rel=1e-9)
    assert between.timesteps == pytest.approx((times[2] + times[3]) / 2)
    np.testing.assert_allclose(chain.times_from_sigmas(sigmas), np.arange(9), atol=1e-9)
    np.testing.assert_array_equal(Chain.from_sigmas(sigmas).at().timesteps, np.arange(9))


def test_single_levels_are_the_rows_of_a_table():
    chain = continuous_chain(EDM, 50)
    table = chain.at(dtype=np.float64)
    found = single_levels(jnp.asarray(table.half_log_snr), jnp.asarray(table.timesteps))
    for name, column in zip(found._fields, found, strict=True):
        if not np.isnan(column).all():
            np.testing.assert_allclose(column, getattr(table, name), rtol=1e-9, err_msg=name)


def test_quantiles_are_uniform_and_their_pairs_antithetic():
    index = jnp.arange(2000)
    draw = jax.jit(quantiles, static_argnames="antithetic")
    u = np.asarray(draw(base_key(0), index, antithetic=False))
    assert np.all((u > 0) & (u < 1))
    # Kolmogorov and Smirnov: 1.95 / √n is exceeded by chance once in a thousand times
    assert np.abs(np.sort(u) - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / np.sqrt(2000)
    pairs = np.asarray(draw(base_key(0), index, antithetic=True)).reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0] + pairs[:, 1], 1)
    part = draw(base_key(0), index[500:510], antithetic=True)
    np.testing.assert_array_equal(part, pairs[250:255].ravel())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: continuous_chain(EDM, 1), "num_timesteps is 1"),
        (lambda: continuous_chain(EDM, 9, shift=0), "shift of the noise levels is 0"),
        (lambda: continuous_chain(EDM, 9, sigma_min=9, sigma_max=2), "from sigma 9 to 2"),
        (lambda: continuous_chain("edm", 9), "interpolant is needed, not 'edm'"),
        (lambda: continuous_chain(EDM, 2.5), "num_timesteps is 2.5: it must be a whole number"),
        (lambda: continuous_chain(EDM, 9, sigma_min="a"), "sigma_min is 'a': choose a number"),
        (lambda: continuous_chain(EDM, 9, sigma_max=np.inf), "sigma_max is inf: choose a number"),
        (lambda: continuous_chain(EDM, 9, sigma_min=90), r"to 80 \(the process's own\)"),
        (
            lambda: continuous_chain(EDM, 9, shift=1e-7),
            "with a shift of 1e-07 run from sigma 2e-10",
        ),
        (
            lambda: continuous_chain(EDM, 3, sigma_min=1e-6, sigma_max=1e17),
            "step from sigma 1e-06 to sigma 7.841e.14, of 3 noise levels, leaves no signal",
        ),
        (
            lambda: continuous_chain(EDM, 9, sigma_min=1, sigma_max=1 + 1e-15),
            "step from sigma 1 to sigma 1, of 9 noise levels, is none in float64",
        ),
        (lambda: Chain.from_sigmas("karras"), "a list of numbers, not karras"),
        (lambda: Chain.from_sigmas([3, 2, 1]), "go from 3 to 2 at index 0: .* ones that rise"),
        (lambda: Chain.from_sigmas([1, 2, np.inf]), "have inf at index 2"),
        (lambda: Chain.from_sigmas([1, 2], [1]), "are 2, with network times of shape"),
        (lambda: make_process(continuous_chain(EDM, 9), "mu"), "has no steps, and so no mu"),
        (lambda: continuous_chain(EDM, 9).nearest_steps(np.ones(1)), "no trained steps to round"),
        (
            lambda: make_process(continuous_chain(EDM, 9), "edm", "learned_range"),
            "and so no variance learned_range",
        ),
        (
            lambda: make_process(continuous_chain(INTERPOLANTS["flow"], 9), "score"),
            "alphas_bar = 0, where score does not",
        ),
        (lambda: edm_parameterization(0), "sigma_data is 0"),
        (
            lambda: level_distribution("normal", continuous_chain(EDM, 9)),
            "Unknown distribution of levels 'normal'",
        ),
        (
            lambda: level_distribution("lognormal", continuous_chain(EDM, 9), log_std=0),
            "deviation of ln sigma is 0",
        ),
        (
            lambda: level_distribution("mode", continuous_chain(EDM, 9), mode_scale=2),
            "scale of the mode distribution is 2",
        ),
    ],
)
def test_mistakes_are_named(build, sentence):
    with pytest.raises(UsageError, match=sentence):
        build()
