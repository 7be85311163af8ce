"""The diffusions of an interpolant: SiT's own chains, and the marginals of a mixture.

`goldens/edm/flow.npz` has SiT's diffusion coefficients and its chains with Euler and Maruyama's and
with Heun's method, in float64; see goldens/README.md.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.interpolant_sde import DIFFUSIONS, diffusion_of
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.samplers.runge_kutta import place

GOLDENS = dict(np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm" / "flow.npz"))
THEIRS = {"sbdm": "SBDM", "increasing_decreasing": "increasing-decreasing"}
CHAINS = {  # of SiT -> options of ours
    "euler_sigma_mean": {"diffusion": "sigma"},
    "heun_sigma_mean": {"diffusion": "sigma", "order": 2},
    "euler_linear_tweedie": {"diffusion": "linear", "last": "tweedie"},
    "euler_constant_euler": {"diffusion": "constant", "norm": 0.7, "last": "euler"},
    "euler_decreasing": {"diffusion": "decreasing"},
    "heun_increasing_decreasing": {"diffusion": "increasing_decreasing", "order": 2},
}
LINE = np.array([0.4, 0.6]), np.array([-0.8, 0.6]), np.array([0.1, 0.2])  # weights, means, stds


@pytest.mark.parametrize(("path", "name"), [("linear", "flow"), ("gvp", "cosine"), ("vp", "vp")])
@pytest.mark.parametrize("form", DIFFUSIONS)
def test_diffusion_coefficients_are_those_of_sit(path, name, form):
    interpolant = INTERPOLANTS[name]
    at = place(interpolant, 1 - np.float64(GOLDENS["t"]))
    expected = GOLDENS[f"{path}/diffusion_{THEIRS.get(form, form)}"]
    np.testing.assert_allclose(diffusion_of(interpolant, at, form), expected, rtol=1e-6)


@pytest.mark.parametrize("case", CHAINS)
def test_chains_are_those_of_sit_from_pure_noise(case):
    """Heun's begins after the noise that SiT adds to x_T, which is noise already."""
    golden = {key: GOLDENS[f"sde/{case}/{key}"] for key in ("noise", "x", "times")}
    with jax.enable_x64(True):
        mixture = make_mixture(
            GOLDENS["gmm/weights"],
            GOLDENS["gmm/means"],
            np.float64(GOLDENS["gmm/stds"]) ** 2,
            dtype=np.float64,
        )
        chain = continuous_chain(INTERPOLANTS["flow"], 1000)
        sampler = make_sampler(
            "interpolant_sde",
            chain,
            steps=9,
            spacing="linspace:0.041666666666666664,inf",
            options=CHAINS[case],
            dtype=np.float64,
        )
        times = np.unique(sampler.schedule.timesteps)[::-1]
        np.testing.assert_allclose(times, 1 - golden["times"], rtol=1e-6)
        x_T, noise = np.float64(GOLDENS["ode/start"]), np.zeros((sampler.num_rows, 5, 3))
        rows = sampler.num_rows // 8
        if rows == 1:
            noise[:8] = golden["noise"]
        else:
            # D and |h| of the first step are 1, or 0, and 0.12
            first = float(CHAINS[case]["diffusion"] == "sigma")
            x_T = x_T + np.sqrt(2 * first * 0.12) * golden["noise"][0]
            noise[1:15:2] = golden["noise"][1:]
        denoiser = exact_denoiser(mixture, sampler.schedule)
        found = sample(denoiser, sampler, x_T, step_noise=noise, trajectory=True)
        found = np.asarray(found.frames_x_t)
    if rows == 1:
        scale = np.hypot(1 - golden["times"], golden["times"])[1:, None, None]
        np.testing.assert_allclose(found[1:9] * scale, golden["x"][:8], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[-1], golden["x"][8], rtol=1e-6, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "form", "order"),
    [
        *itertools.product(("flow", "cosine", "vp"), DIFFUSIONS, (1,)),
        *itertools.product(("edm",), ("sigma", "sbdm", "constant"), (1,)),
        ("flow", "sigma", 2),
    ],
)
def test_every_diffusion_of_every_path_ends_at_the_data(oracle, name, form, order):
    """1,500 samples by the exact denoiser, against the distribution function of the mixture."""
    chain = continuous_chain(INTERPOLANTS[name], 1000, sigma_max=200.0)
    sampler = make_sampler(
        "interpolant_sde",
        chain,
        steps=300,
        spacing="karras" if name == "edm" or form in ("sbdm", "constant") else "linspace",
        options={"diffusion": form, "order": order, "last": "tweedie"},
    )
    keys = image_keys(jax.random.key(0), jnp.arange(1500))
    weights, means, stds = LINE
    mixture = make_mixture(weights, means[:, None], stds**2)
    found = oracle.run(sampler, initial_noise(keys, (1,)), keys, mixture=mixture).x_0
    error = kstest(
        np.ravel(found), lambda x: norm.cdf(np.subtract.outer(x, means) / stds) @ weights
    )
    # 1.95 / √n is exceeded by chance once in a thousand times
    assert error.statistic < 1.95 / np.sqrt(1500)


@pytest.mark.parametrize(
    ("process", "options", "sentence"),
    [
        ("edm", {"diffusion": "linear"}, "which the path edm does not have: choose sigma, sbdm"),
        ("flow", {"diffusion": "cubic"}, "Unknown diffusion 'cubic'"),
        ("flow", {"last": "none"}, "Unknown last step 'none'"),
        ("flow", {"norm": -1.0}, "norm is -1.0"),
        ("flow", {"order": 3}, "has the orders 1 and 2"),
    ],
)
def test_mistakes_are_named(process, options, sentence):
    chain = continuous_chain(INTERPOLANTS[process], 100)
    with pytest.raises(UsageError, match=sentence):
        make_sampler("interpolant_sde", chain, steps=5, options=options)
