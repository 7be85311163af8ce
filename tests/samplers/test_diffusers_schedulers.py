"""The schedulers of diffusers with equal settings, in float64, on the exact ε of a mixture.

Results are compared for the same predictions at given levels, with the same noise. Where
diffusers rounds levels (σ to float32, times to integers) it gets ours. Its x is x̄ = x / √ᾱ in
the schedulers in σ, and both start from our x_T. The last tests compare `levels="diffusers"` with
the schedulers as they come.
"""

import inspect

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.interop.schedulers import SAMPLERS as SCHEDULERS
from ddpm_jax.interop.schedulers import read_scheduler
from ddpm_jax.randomness import normal, row_keys
from ddpm_jax.samplers.diffusers_levels import scheduler_options
from ddpm_jax.samplers.editing import start_from
from ddpm_jax.samplers.linear import levels_from_schedule
from ddpm_jax.samplers.registry import SAMPLERS, make_sampler, walked
from ddpm_jax.samplers.spacing import space

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
pytestmark = [  # PyTorch's arrays do not know the arguments of NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STEPS = 10
CLOSE = 1e-5  # of the largest value; several schedulers compute in float32 in between
every_spacing = pytest.mark.parametrize(
    "spacing", ["linspace", "leading", "trailing", "karras", "exponential"]
)


def make_scheduler(oracle, name, **config):
    """A scheduler of the oracle's chain, ᾱ in float64."""
    betas = oracle.chain.betas
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=len(betas), trained_betas=betas.tolist(), **config
    )
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.is_scale_input_called = True
    return scheduler


def with_sigmas(scheduler, sigmas, count):
    """Set these σ, unrounded, and one timestep for every evaluation."""
    scheduler.sigmas = torch.from_numpy(sigmas)
    scheduler.timesteps = torch.arange(count, 0, -1, dtype=torch.float64)
    return scheduler


def sigmas_at(oracle, times):
    """σ of the levels, the noisiest first, and 0: [N+1]."""
    return levels_from_schedule(oracle.chain.at(times, dtype=np.float64)).sigma


def noises(oracle, rows):
    """The z of every row of a chain of 8 images in the plane, float64 [rows, 8, 2]."""
    with jax.enable_x64(True):
        _, keys = oracle.start(8)
        return np.stack([normal(row_keys(keys, row), (2,)) for row in range(rows - 1, -1, -1)])


def ours(oracle, name, times, *, rows=slice(None), change=lambda rows: rows, **options):
    """x_T of our sampler and what it comes to by these of its rows, float64 [8, 2]."""
    with jax.enable_x64(True):
        sampler = SAMPLERS[name](oracle.chain, times, **options, dtype=np.float64)
        x_T, keys = oracle.start(8)
        kept = jax.tree.map(lambda row: row[rows], change(sampler.rows))
        return np.array(x_T), np.array(
            oracle.run(sampler, x_T, keys, rows=kept, dtype=np.float64).x_0
        )


def theirs(oracle, scheduler, x_T, evaluated, *, in_sigma, steps=slice(None), z=None, **options):
    """Return x_0 of a scheduler that evaluates at the σ in `evaluated`."""
    x = torch.from_numpy(x_T * np.sqrt(1 + evaluated[0] ** 2) if in_sigma else x_T)
    for i, t in enumerate(scheduler.timesteps[steps]):
        x_bar = x.numpy().astype(np.float64) * (1 if in_sigma else np.sqrt(1 + evaluated[i] ** 2))
        noise = {} if z is None else {"variance_noise": torch.from_numpy(z[i])}
        x = scheduler.step(
            torch.from_numpy(oracle.eps(x_bar, evaluated[i])), t, x, **noise, **options
        ).prev_sample
    return x.numpy()


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE * np.abs(expected).max())


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 200])
def test_spacings_keep_the_timesteps_of_diffusers(oracle, spacing, steps):
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=200, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    # One step of their linspace starts at 0, where there is no noise; ours at T-1.
    expected = (
        [199] if (spacing, steps) == ("linspace", 1) else np.sort(scheduler.timesteps.numpy())
    )
    np.testing.assert_array_equal(space(oracle.chain, spacing, steps), expected)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_spacings_in_sigma_are_those_of_diffusers(oracle, spacing):
    scheduler = make_scheduler(oracle, "EulerDiscreteScheduler", **{f"use_{spacing}_sigmas": True})
    found = sigmas_at(oracle, space(oracle.chain, spacing, STEPS))
    # Their betas and sigmas are float32, and 1 - ᾱ at t = 0 is 5e-4: three digits of float32's
    # seven are lost.
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), rtol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(oracle, eta, spacing):
    """Spacings whose steps are T // N, the length of their DDIM steps for any next timestep."""
    times = space(oracle.chain, spacing, STEPS)
    scheduler = make_scheduler(oracle, "DDIMScheduler", timestep_spacing=spacing, clip_sample=False)
    x_T, found = ours(oracle, "ddim", times, eta=eta)
    evaluated = sigmas_at(oracle, times)
    assert_close(
        found,
        theirs(oracle, scheduler, x_T, evaluated, in_sigma=False, z=noises(oracle, STEPS), eta=eta),
    )


@every_spacing
def test_euler(oracle, spacing):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    scheduler = with_sigmas(make_scheduler(oracle, "EulerDiscreteScheduler"), sigmas, STEPS)
    x_T, found = ours(oracle, "euler", times)
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=True))


@every_spacing
def test_euler_ancestral(oracle, spacing, monkeypatch):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    scheduler = with_sigmas(
        make_scheduler(oracle, "EulerAncestralDiscreteScheduler"), sigmas, STEPS
    )
    z = iter(noises(oracle, STEPS))
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: torch.from_numpy(next(z)))
    x_T, found = ours(oracle, "euler_ancestral", times)
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=True))


@every_spacing
def test_heun(oracle, spacing):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    twice = np.append(sigmas[0], np.repeat(sigmas[1:], 2))
    scheduler = with_sigmas(make_scheduler(oracle, "HeunDiscreteScheduler"), twice, 2 * STEPS - 1)
    x_T, found = ours(oracle, "heun", times)
    assert_close(
        found,
        theirs(
            oracle, scheduler, x_T, np.append(sigmas[0], np.repeat(sigmas[1:], 2)), in_sigma=True
        ),
    )


@every_spacing
def test_dpm2(oracle, spacing):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    middle = np.sqrt(sigmas[:-1] * sigmas[1:])  # 0 in the last step, which is Euler's
    twice = np.append(sigmas[0], np.repeat(sigmas[1:], 2))
    scheduler = with_sigmas(make_scheduler(oracle, "KDPM2DiscreteScheduler"), twice, 2 * STEPS - 1)
    scheduler.sigmas_interpol = torch.from_numpy(np.append(0, np.repeat(middle, 2)))
    x_T, found = ours(oracle, "dpm2", times)
    evaluated = np.stack([sigmas[:-1], middle], axis=1).ravel()
    assert_close(found, theirs(oracle, scheduler, x_T, evaluated, in_sigma=True))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@every_spacing
def test_lms(oracle, spacing, order):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    scheduler = with_sigmas(make_scheduler(oracle, "LMSDiscreteScheduler"), sigmas, STEPS)
    x_T, found = ours(oracle, "lms", times, order=order)
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=True, order=order))


@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_pndm(oracle, name):
    """Leading spacing with T / N even: their steps are T // N and T // N // 2 for any timesteps."""
    times = space(oracle.chain, "leading", STEPS)
    scheduler = make_scheduler(
        oracle, "PNDMScheduler", skip_prk_steps=name == "plms", timestep_spacing="leading"
    )
    x_T, found = ours(oracle, name, times)
    evaluated = np.exp(oracle.chain.log_sigmas[scheduler.timesteps.numpy()])
    assert_close(found, theirs(oracle, scheduler, x_T, evaluated, in_sigma=False))


@pytest.mark.parametrize("sde", [False, True])
@every_spacing
def test_dpmpp_2m(oracle, spacing, sde):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    algorithm = "sde-dpmsolver++" if sde else "dpmsolver++"
    scheduler = make_scheduler(
        oracle, "DPMSolverMultistepScheduler", algorithm_type=algorithm, lower_order_final=False
    )
    with_sigmas(scheduler, sigmas, STEPS)
    x_T, found = ours(oracle, "dpmpp_2m_sde" if sde else "dpmpp_2m", times)
    z = noises(oracle, STEPS)
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=False, z=z))


def half_second_difference(rows, sigmas):
    """Change our third-order weights to theirs.

    They have -φ_3 D_2 where the integral of the parabola is -2 φ_3 D_2.
    """
    half_log_snr = -np.log(sigmas[:-1])
    x_0 = rows.weights.x_0.copy()
    for i in range(2, len(x_0) - 1):
        h = half_log_snr[i + 1] - half_log_snr[i]
        r_0, r_1 = np.diff(half_log_snr[i - 2 : i + 1])[::-1] / h
        second_difference = np.array([1 / r_0, -1 / r_0 - 1 / r_1, 1 / r_1]) / (r_0 + r_1)
        phi_3 = (np.expm1(-h) + h) / h**2 - 0.5
        x_0[i] += phi_3 * second_difference / np.sqrt(1 + sigmas[i + 1] ** 2)
    return rows._replace(weights=rows.weights._replace(x_0=x_0))


@every_spacing
def test_dpmpp_3m_but_for_the_weight_of_the_second_difference(oracle, spacing):
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    scheduler = make_scheduler(
        oracle, "DPMSolverMultistepScheduler", solver_order=3, lower_order_final=False
    )
    with_sigmas(scheduler, sigmas, STEPS)
    x_T, found = ours(
        oracle, "dpmpp_3m", times, change=lambda rows: half_second_difference(rows, sigmas)
    )
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=False))


def test_half_the_second_difference_makes_the_third_order_solver_one_of_second_order(oracle):
    options = {"exact_history": 2}
    assert oracle.order("dpmpp_3m", {}, "exponential", **options) > 2.7
    assert (
        oracle.order("dpmpp_3m", {}, "exponential", **options, change=half_second_difference) < 2.3
    )


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@every_spacing
def test_unipc(oracle, spacing, order, variant):
    """All but the last step with bh1, where theirs divides by the infinite h and gives NaN."""
    times = space(oracle.chain, spacing, STEPS)
    sigmas = sigmas_at(oracle, times)
    scheduler = make_scheduler(
        oracle,
        "UniPCMultistepScheduler",
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="zero",
    )
    with_sigmas(scheduler, sigmas, STEPS)
    steps = slice(STEPS - (variant == "bh1"))
    x_T, found = ours(oracle, "unipc", times, rows=steps, order=order, variant=variant)
    assert_close(found, theirs(oracle, scheduler, x_T, sigmas, in_sigma=False, steps=steps))


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OF_SD = SD | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def live_scheduler(name, steps, **config):
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    config = {key: value for key, value in (OF_SD | config).items() if key in known}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def rows_of(sampler):
    """The row of the schedule at which each step evaluates; `ancestral` has these as its rows."""
    return np.asarray(getattr(sampler.rows, "level", sampler.rows))


@pytest.mark.full
@pytest.mark.parametrize(
    ("steps", "prediction"),
    [(1, "epsilon"), (2, "v_prediction"), (7, "epsilon"), (23, "v_prediction")],
)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "karras", None])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_their_own_levels(name, spacing, steps, prediction, monkeypatch, replay):
    """`levels="diffusers"` against the scheduler as it comes, and its config as it is saved."""
    config = {} if spacing is None else {"timestep_spacing": spacing}
    if spacing == "karras":
        config = {"use_karras_sigmas": True}
        if "use_karras_sigmas" not in inspect.signature(getattr(diffusers, name)).parameters:
            pytest.skip("this scheduler has no Karras sigmas")
    config |= {"prediction_type": prediction, "skip_prk_steps": True}
    scheduler = live_scheduler(name, steps, **config)
    facts = read_scheduler(dict(scheduler.config) | {"_class_name": name})
    sampler = make_sampler(
        facts.sampler,
        Chain(facts.betas),
        steps=steps,
        levels=facts.options,
        options=scheduler_options(facts.sampler, facts.prediction),
    )
    times = np.asarray(sampler.schedule.timesteps)[rows_of(sampler)]
    np.testing.assert_allclose(times, scheduler.timesteps.numpy(), rtol=4e-5, atol=5e-5)
    rng = np.random.default_rng(0)
    outputs, z = rng.standard_normal((2, len(times), 4, 3)).astype(np.float32)
    for module in ("euler_ancestral_discrete", "ddpm"):
        draws = iter(z)
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{module}.randn_tensor",
            lambda *_, draws=draws, **__: torch.from_numpy(next(draws)),
        )
    noise = rng.standard_normal((4, 3)).astype(np.float32)
    x = torch.from_numpy(noise * np.float32(scheduler.init_noise_sigma))
    for output, t in zip(outputs, scheduler.timesteps, strict=True):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(output), t, x).prev_sample
    found = replay(sampler, sampler.start_scale * noise, outputs, facts.prediction, z)[-1]
    expected = x.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_image_to_image_with_pndm_from_the_first_time_that_is_walked(replay):
    """Their steps with the times that they should have: the second one twice, from there on."""
    scheduler = live_scheduler("PNDMScheduler", 10, skip_prk_steps=True)
    facts = read_scheduler(dict(scheduler.config) | {"_class_name": "PNDMScheduler"})
    chain, times = walked("plms", Chain(facts.betas), steps=10, spacing=None, levels=facts.options)
    sampler = make_sampler("plms", chain, spacing=start_from(times, 0.5, truncated=True))
    outputs, z = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    x = torch.from_numpy(z[0])
    for output, t in zip(outputs, (401, 301, 301, 201, 101, 1), strict=True):
        x = scheduler.step(torch.from_numpy(output), t, x).prev_sample
    found = replay(sampler, z[0], outputs, facts.prediction)[-1]
    np.testing.assert_allclose(found, x.numpy(), rtol=0, atol=CLOSE * np.abs(x.numpy()).max())
