"""`levels="diffusers"` against what diffusers' pipelines did, step by step, and its schedules.

The goldens hold the network's outputs, so that no network is needed: row i gets the i-th of them.
Their x is x̄ = x / √ᾱ in the schedulers in σ. Their tables are float32, where 1 - ᾱ at t = 0 has
lost two digits: σ differs by 1.3e-5 there and by 3e-6 elsewhere, times of Karras σ by 3e-5; the
steps by less than 3e-6.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import EDM
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.schedulers import SAMPLERS, read_scheduler
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.adams import lagrange_integrals
from ddpm_jax.samplers.diffusers_levels import (
    IN_SIGMA,
    SchedulerOptions,
    diffusers_levels,
    scheduler_options,
)
from ddpm_jax.samplers.editing import noised, start_from
from ddpm_jax.samplers.loop import Noise, sample
from ddpm_jax.samplers.registry import make_sampler, walked

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "sd"
CHAIN = Chain(make_betas("scaled_linear", 1000))
SCHEDULES = np.load(GOLDENS / "schedules.npz")
CLASSES = {  # the names in schedules.npz
    "ddim": "ddim",
    "ddpm": "ancestral",
    "dpmpp_2m": "dpmpp_2m",
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "heun": "heun",
    "lms": "lms",
    "pndm": "plms",
    "unipc": "unipc",
}
RUNS = {
    run["file"].removesuffix(".npz"): run
    for model in ("sd1", "sd2")
    for run in json.loads((GOLDENS / "outputs.json").read_text())[model]["runs"]
}
# One of each scheduler, of each prediction and of each spacing in the fast tier.
FAST = (
    "sd1_ddim_eta",
    "sd1_dpmpp_2m_karras",
    "sd1_euler_a",
    "sd1_lms_leading",
    "sd1_pndm",
    "sd2_v_euler",
    "sd2_v_pndm",
)
FROM_NOISE = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.full)
    for name, run in RUNS.items()
    if run["strength"] is None
]


def told(sampler):
    """The network's time in every row."""
    return np.asarray(sampler.schedule.timesteps)[np.asarray(sampler.rows.level)]


def in_their_scale(name, sampler, xs):
    """√(1 + σ²) x for the schedulers in σ, x for the others."""
    if name not in IN_SIGMA:
        return xs
    sigma = np.exp(-np.asarray(sampler.schedule.half_log_snr))[np.asarray(sampler.rows.level)]
    return xs * np.sqrt(1 + np.append(sigma, 0) ** 2).reshape(-1, *[1] * (xs.ndim - 1))


def scheduler_of(run):
    """The facts of a run's scheduler, and the options of our sampler."""
    name = run["scheduler"].split()[0]
    facts = read_scheduler(run["scheduler_config"] | {"_class_name": name})
    options = scheduler_options(facts.sampler, facts.prediction)
    return facts, options | ({"eta": run["eta"]} if facts.sampler == "ddim" else {})


@pytest.mark.parametrize("name", FROM_NOISE)
def test_every_step_of_the_pipelines(name, replay):
    run, golden = RUNS[name], np.load(GOLDENS / f"{name}.npz")
    facts, options = scheduler_of(run)
    chain = Chain(facts.betas)
    sampler = make_sampler(
        facts.sampler, chain, steps=run["steps"], levels=facts.options, options=options
    )
    np.testing.assert_array_equal(told(sampler), golden["unet_timesteps"])
    noises = [golden[key] for key in sorted(golden.files) if key.startswith("noise_")]
    xs = replay(
        sampler,
        sampler.start_scale * golden["initial_noise"],
        golden["model_output"],
        facts.prediction,
        noises or None,
    )
    found = in_their_scale(facts.sampler, sampler, xs)
    expected = np.concatenate([golden["sample"][:1], golden["prev_sample"]])
    for x, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())


def levels_of(key):
    """(our sampler, N, its levels) for the times of a schedule in the golden file."""
    scheduler, spacing, steps, _ = key.split("/")
    base, _, sigmas = spacing.partition("_")
    options = SchedulerOptions(
        spacing=base, sigmas=sigmas or None, steps_offset=1, set_alpha_to_one=False
    )
    name, steps = CLASSES[scheduler], int(steps)
    return name, steps, diffusers_levels(name, CHAIN, steps, scheduler=options)


def doubled(name, levels):
    """Noisiest first, repeated as the scheduler's table repeats them."""
    levels = levels[::-1]
    if name == "plms":
        return np.insert(levels, 1, levels[1:2])
    return np.append(levels[0], np.repeat(levels[1:], 2)) if name == "heun" else levels


@pytest.mark.parametrize("key", [key for key in SCHEDULES if key.endswith("/timesteps")])
def test_times_and_sigmas_of_every_scheduler(key):
    name, _, levels = levels_of(key)
    karras = "karras" in key
    np.testing.assert_allclose(
        doubled(name, levels.network_times),
        SCHEDULES[key],
        rtol=4e-5 if karras else 1e-7,
        atol=5e-5 if karras else 1e-9,
    )
    sigmas = SCHEDULES.get(key.replace("timesteps", "sigmas"))
    if sigmas is None:  # DDIM, PNDM, DDPM
        return
    found = doubled(name, np.exp(-levels.half_log_snr))
    near_0 = doubled(name, levels.network_times) < 20
    np.testing.assert_allclose(found, sigmas[:-1], rtol=1.4e-5)
    if not karras:  # whose σ all depend on that of t = 0
        np.testing.assert_allclose(found[~near_0], sigmas[:-1][~near_0], rtol=4e-6)
    start = SCHEDULES[key.replace("timesteps", "init_noise_sigma")]
    scale = levels.start_scale * (np.sqrt(found[0] ** 2 + 1) if name in IN_SIGMA else 1)
    np.testing.assert_allclose(scale, start, rtol=1.4e-5)


@pytest.mark.parametrize("key", [key for key in SCHEDULES if key.endswith("/lms_coefficients")])
def test_coefficients_of_lms(key):
    """Rows of our weights, divided by √ᾱ'; theirs are by quadrature to 1e-4."""
    name, steps, levels = levels_of(key)
    sampler = make_sampler(name, levels, spacing=np.arange(steps), dtype=np.float32)
    sigma = np.append(np.exp(-levels.half_log_snr[::-1]), 0)
    found = np.asarray(sampler.rows.weights.eps) * np.sqrt(1 + sigma[1:, None] ** 2)
    expected = SCHEDULES[key]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    newest = lagrange_integrals(sigma[:1], sigma[0], sigma[1])
    np.testing.assert_allclose(found[0, 0], newest[0], rtol=1e-6)


def editing(name):
    """(run, golden, facts, chain of levels, times from which the picture is walked)."""
    run, golden = RUNS[name], np.load(GOLDENS / f"{name}.npz")
    facts, options = scheduler_of(run)
    chain, times = walked(
        facts.sampler, Chain(facts.betas), steps=run["steps"], spacing=None, levels=facts.options
    )
    times = start_from(times, run["strength"], truncated=True)
    return golden, facts, options, chain, times


@pytest.mark.parametrize("name", ["sd1_img2img_ddim", "sd1_img2img_lms_ramped"])
def test_image_to_image_starts_and_steps_as_the_pipeline(name, replay):
    golden, facts, options, chain, times = editing(name)
    sampler = make_sampler(facts.sampler, chain, spacing=times, options=options)
    np.testing.assert_array_equal(told(sampler), golden["unet_timesteps"])
    # z_0, the same draw in both runs, from the start of DDIM's: √ᾱ z_0 + √(1-ᾱ) z
    ddim, *_ = editing("sd1_img2img_ddim")
    alpha_bar = np.cumprod(1 - CHAIN.betas)[ddim["unet_timesteps"][0].astype(int)]
    z_0 = (ddim["sample"][0] - np.sqrt(1 - alpha_bar) * ddim["noise_01"]) / np.sqrt(alpha_bar)
    x = noised(chain.at(times), z_0.astype(np.float32), golden["noise_01"])
    xs = replay(sampler, x, golden["model_output"], facts.prediction)
    found = in_their_scale(facts.sampler, sampler, xs)
    expected = np.concatenate([golden["sample"][:1], golden["prev_sample"]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


def test_image_to_image_with_pndm_repeats_its_own_second_time():
    """diffusers cuts the doubled time off and repeats the first step at the next one."""
    golden, facts, options, chain, times = editing("sd1_img2img_pndm")
    sampler = make_sampler(facts.sampler, chain, spacing=times, options=options)
    np.testing.assert_array_equal(told(sampler), [401, 301, 301, 201, 101, 1])
    assert golden["unet_timesteps"].tolist() == [501, 401, 301, 201, 101, 1]


@pytest.mark.parametrize(
    ("strength", "steps", "kept"), [(0.7, 10, 7), (0.29, 100, 28), (1.0, 10, 10), (0.99, 10, 9)]
)
def test_the_share_of_the_steps_is_truncated_as_there(strength, steps, kept):
    assert len(start_from(np.arange(steps), strength, truncated=True)) == kept


def test_a_strength_without_a_step_is_refused():
    with pytest.raises(UsageError, match=r"strength is 0\.05: of 10 steps that is not one"):
        start_from(np.arange(10), 0.05, truncated=True)


@pytest.mark.full
@pytest.mark.parametrize("name", ["lms", "ddim", "plms", "dpmpp_2m", "heun", "ancestral"])
def test_the_scan_walks_them_as_the_loop(name):
    """`loop.sample`, on which segments, frames and devices stand, with given noise."""
    sampler = make_sampler(name, CHAIN, steps=6, levels="diffusers")
    x = initial_noise(image_keys(jax.random.key(0), jnp.arange(2)), (3,))
    z = np.random.default_rng(0).standard_normal((sampler.num_rows, 2, 3)).astype(np.float32)
    process = make_process(CHAIN, "eps", "fixed_small")
    denoiser = process.denoiser(
        lambda x_t, time: jnp.tanh(x_t) + time[:, None] / 1e3, sampler.schedule, clip="none"
    )
    noise = z if sampler.draws else None
    scanned = sample(denoiser, sampler, x, step_noise=noise, trajectory=True)
    state = sampler.init(x)
    for i in range(sampler.num_rows):
        row = jax.tree.map(lambda table, i=i: table[i], sampler.rows)
        np.testing.assert_allclose(scanned.frames_x_t[i], state.x_t, rtol=0, atol=2e-5)
        state, _ = sampler.step(denoiser, state, row, Noise(None, z[i][None]))
    np.testing.assert_allclose(scanned.x_0, state.x_t, rtol=0, atol=2e-5)


def test_the_defaults_are_the_chain_itself():
    exact = make_sampler("lms", CHAIN, steps=5)
    named = make_sampler("lms", CHAIN, steps=5, spacing="linspace", levels="exact")
    for ours, same in zip(jax.tree.leaves(exact[:2]), jax.tree.leaves(named[:2]), strict=True):
        np.testing.assert_array_equal(ours, same)
    assert exact.start_scale == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "dpm2"}, "dpm2 has no levels of diffusers: choose one of lms"),
        ({"name": "ddim", "spacing": "karras"}, "ddim has no spacing karras"),
        ({"name": "lms", "spacing": "quadratic"}, "spacing of diffusers 'quadratic'"),
        ({"name": "lms", "spacing": [999, 0]}, "no list of timesteps"),
        ({"name": "lms", "steps": 0}, "choose 1 to 1000"),
        ({"name": "unipc", "steps": 1000}, "choose 1 to 999"),
        ({"name": "lms", "levels": "diffuser"}, "Did you mean 'diffusers'"),
        (
            {"name": "ddim", "steps": 1000, "levels": SchedulerOptions(steps_offset=1)},
            "start at t = 1000",
        ),
        (
            {"name": "lms", "chain": Chain(make_betas("linear", 9, zero_terminal_snr=True))},
            "alphas_bar = 0, where diffusers' scheduler of lms has no first level",
        ),
        (
            {"name": "euler", "chain": continuous_chain(EDM, 50)},
            "this process is in continuous time: leave levels out",
        ),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UsageError, match=words):
        make_sampler(**{"chain": CHAIN, "steps": 10, "levels": "diffusers"} | arguments)


def test_every_class_is_known():
    defaults = json.loads((GOLDENS / "schedules.json").read_text())["class_defaults"]
    assert set(CLASSES) == set(defaults)
    assert set(CLASSES.values()) == set(SAMPLERS.values())
