"""Samplers over processes in continuous time: the reference's chains, and the meaning of targets.

`goldens/edm/samplers.npz` has chains of EDM's samplers, step by step, `flow.npz` SiT's ODE solvers;
see goldens/README.md.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import EDM, FLOW, INTERPOLANTS
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.parameterization import MU, PARAMETERIZATIONS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "edm"
CASES = json.loads((GOLDENS / "outputs.json").read_text())["samplers"]
ON_MIXTURE = [name for name, case in CASES.items() if str(case["denoiser"]).startswith("gmm")]
PREDICTS = {"EDMPrecond": ("edm", "edm"), "VPPrecond": ("vp", "eps"), "VEPrecond": ("ve", "score")}
IDDPM = ("edm_iddpm_rounded_churn", "abl_iddpm_heun_rounded", "abl_iddpm_precond")
WIDE = continuous_chain(EDM, 1000, sigma_min=1e-4, sigma_max=1e3)  # with the levels of all cases


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDENS / "samplers.npz"))


def read(arrays, case):
    prefix = f"{case}/"
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def read_mixture(arrays):
    found = read(arrays, "gmm")
    variances = np.float64(found["stds"]) ** 2
    return make_mixture(found["weights"], found["means"], variances, dtype=np.float64)


@functools.cache
def iddpm_chain():
    """Return the chain of the reference's table of levels, which it computes in float32."""
    levels = np.load(GOLDENS / "preconditioners.npz")["iddpm/u"]
    alphas_bar = 1 / (1 + np.square(np.float64(levels[-2::-1])))
    return Chain(1 - alphas_bar / np.append(1, alphas_bar[:-1]))


def make_options(arguments):
    """Return the options of runge_kutta that are those of the reference's sampler."""
    path = arguments.get("schedule", "edm")
    names = {"S_churn": "s_churn", "S_min": "s_min", "S_max": "s_max", "S_noise": "s_noise"}
    return {
        "path": path,
        "scaled": path != "vp" or arguments.get("scaling") == "vp",
        "order": 1 if arguments.get("solver") == "euler" else 2,
        "alpha": arguments.get("alpha", 1.0),
    } | {names[name]: value for name, value in arguments.items() if name in names}


def levels_of(case, expected, chain):
    """Return the steps and the spacing: of an iDDPM network by name, of others the times."""
    if case not in IDDPM:
        return None, chain.times_from_sigmas(expected["sigma_steps"])[::-1]
    is_ablation = "discretization" in CASES[case]["arguments"]
    return len(expected["sigma_steps"]), "linspace:0.002,81" if is_ablation else "karras:0.002,80"


def check_chain_of(case, expected, chain, denoise, *, tolerance, last=None):
    """Compare the state at the beginning of every step, and the end."""
    options = make_options(CASES[case]["arguments"]) | {"rounded": case in IDDPM}
    steps, spacing = levels_of(case, expected, chain)
    sampler = make_sampler(
        "runge_kutta", chain, steps=steps, spacing=spacing, options=options, dtype=np.float64
    )
    asked = sampler.schedule.sigma[sampler.rows.level]
    np.testing.assert_allclose(asked, expected["net_sigmas"], rtol=1e-6)
    order, path = options["order"], INTERPOLANTS[options["path"]]

    def scale(sigma):
        return path.scale(np.log(sigma)) if options["scaled"] else np.sqrt(1 + sigma**2)

    noise = None
    if options.get("s_churn"):
        noise = np.zeros((sampler.num_rows, *expected["latents"].shape))
        noise[1::2] = expected["noise"][1:]  # a row ends with the noise of the next step
    x_T = np.float64(expected["x"][0]) / scale(expected["sigma_steps"][0])
    found = sample(denoise(sampler.schedule), sampler, x_T, step_noise=noise, trajectory=True)
    assert sampler.evaluations == len(expected["net_sigmas"])
    begun = scale(expected["net_sigmas"][::order]).reshape(-1, *(1,) * (x_T.ndim))
    np.testing.assert_allclose(
        found.frames_x_t[:-1:order] * begun, expected["x_hat"], rtol=tolerance, atol=tolerance
    )
    last = last or tolerance
    np.testing.assert_allclose(found.x_0, expected["final"], rtol=last, atol=last)


@pytest.mark.parametrize("case", ON_MIXTURE)
def test_chains_on_a_mixture_are_the_references(arrays, case):
    """Every schedule, scaling, discretisation, order and churn, in float64."""
    mixture = read_mixture(arrays)
    check_chain_of(
        case,
        read(arrays, case),
        iddpm_chain() if case in IDDPM else WIDE,
        lambda schedule: exact_denoiser(mixture, schedule),
        tolerance=1e-6,
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "case", ["edm_precond", "abl_vp_precond", "abl_ve_precond", "abl_iddpm_precond"]
)
def test_chains_of_a_preconditioned_network_are_the_references(arrays, case):
    """Their float32, whose last states of VP, at little noise, are known to 3e-4 only.

    The network of iDDPM has its variance in further channels, which no sampler here reads.
    """
    network = CASES[case]["denoiser"]["network"]
    is_iddpm = case in IDDPM
    process, prediction = PREDICTS.get(CASES[case]["denoiser"]["precond"], (None, "eps"))
    chain = iddpm_chain() if is_iddpm else continuous_chain(INTERPOLANTS[process], 1000)

    def closed_form(x, time):
        time = time.reshape(-1, *(1,) * (x.ndim - 1))
        value = jnp.tanh(network["a"] * x + network["b"] * time)
        return jnp.concatenate([value, 7 - value], axis=-1) if is_iddpm else value

    check_chain_of(
        case,
        read(arrays, case),
        chain,
        lambda schedule: make_process(
            chain, prediction, "learned_range" if is_iddpm else "fixed_large"
        ).denoiser(closed_form, schedule, clip="none"),
        tolerance=1e-4,
        last=3e-3,
    )


@pytest.mark.parametrize(
    ("case", "name", "first", "last"),
    [
        ("edm_18", "edm", 80, 0.002),
        ("abl_ve_heun", "ve", 100, 0.02),
        ("abl_vp_heun", "vp", None, None),
    ],
)
def test_levels_evenly_spaced_in_a_process_are_its_discretisation(arrays, case, name, first, last):
    """Eq. 5 of Karras et al. 2022 and its likes; VP's code ends at τ = 1e-3."""
    expected = read(arrays, case)["sigma_steps"]
    last = expected[-1] if last is None else last
    chain = continuous_chain(INTERPOLANTS[name], 1000, sigma_min=last, sigma_max=first)
    table = make_sampler("euler", chain, steps=len(expected), spacing="linspace").schedule
    np.testing.assert_allclose(table.sigma[::-1], expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("method", "name", "options"),
    [
        ("euler", "euler", {}),
        ("euler", "runge_kutta", {"order": 1}),
        ("heun2", "runge_kutta", {}),
        ("midpoint", "runge_kutta", {"alpha": 0.5}),
    ],
)
def test_the_ode_of_a_flow_is_walked_as_by_sit(method, name, options):
    """From pure noise, in τ, and at the default levels. Their last step ends where ours cannot."""
    goldens = dict(np.load(GOLDENS / "flow.npz"))
    expected, times = goldens[f"ode/{method}"], 1 - goldens["ode/times"]
    mixture = make_mixture(
        goldens["gmm/weights"],
        goldens["gmm/means"],
        np.float64(goldens["gmm/stds"]) ** 2,
        dtype=np.float64,
    )
    chain = continuous_chain(FLOW, 1000)
    sampler = make_sampler(name, chain, steps=8, options=options, dtype=np.float64)
    x_T = np.float64(goldens["ode/start"])
    denoiser = exact_denoiser(mixture, sampler.schedule)
    found = sample(denoiser, sampler, x_T, trajectory=True).frames_x_t
    # of two rows a step, the last step, to clean data, has one
    begun = found if sampler.num_rows == 8 else found[:-1:2]
    scale = np.hypot(1 - times, times)[: len(begun), None, None]
    np.testing.assert_allclose(begun * scale, expected[: len(begun)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", INTERPOLANTS)
@pytest.mark.parametrize(
    "prediction", [name for name, of in PARAMETERIZATIONS.items() if of is not MU]
)
def test_every_target_means_the_same_on_every_process(process, prediction):
    """So samplers, which see x_0 and ε alone, take the same steps for all."""
    chain = continuous_chain(INTERPOLANTS[process], 1000)
    if prediction in ("eps", "score") and np.isinf(chain.log_sigmas[-1]):
        with pytest.raises(UsageError, match="alphas_bar = 0"):
            make_process(chain, prediction)
        return
    schedule, t = chain.at(np.linspace(0, 999, 30), dtype=np.float64), jnp.arange(30)
    x_0, eps = np.random.default_rng(0).normal(size=(2, 30, 2, 2, 1))
    a, s = (
        np.reshape(of, (-1, 1, 1, 1))
        for of in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
    )
    x_t = jnp.asarray(a * x_0 + s * eps)
    value = PARAMETERIZATIONS[prediction].target(schedule, x_t, t, x_0, eps)
    found = make_process(chain, prediction).interpret(schedule, value, x_t, t)
    np.testing.assert_allclose(found.x_0, x_0, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.eps, eps, rtol=1e-8, atol=1e-8)
