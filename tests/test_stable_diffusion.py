"""Stable Diffusion from its directory: every step of whole chains as diffusers computes them.

The goldens are tiny directories and what `StableDiffusionPipeline` made of them; see
`tests/goldens/README.md`. Tolerances: those at which float32 and float64 agree there.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.tasks.editing_settings import Editing
from ddpm_jax.tasks.image_arrays import make_trajectory
from ddpm_jax.tasks.picture_editing import make_editor

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "sd"
OUTPUTS = json.loads((GOLDENS / "outputs.json").read_text())
RUNS = {
    run["file"]: run | {"model": model}
    for model in ("sd1", "sd2")
    for run in OUTPUTS[model]["runs"]
}
SAMPLERS = {  # scheduler class -> ours
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
IN_CI = ("sd1_lms.npz", "sd2_v_ddim.npz")
CHAINS = [
    pytest.param(name, marks=pytest.mark.full if name in IN_CI else pytest.mark.slow)
    for name, run in RUNS.items()
    if run["strength"] is None
]


@pytest.fixture(scope="module")
def models():
    return {name: ddpm_jax.load(GOLDENS / name) for name in ("sd1", "sd2")}


def channels_last(array):
    return np.moveaxis(array, -3, -1)


def settings_of(run, golden):
    """Return the arguments of `sample` that a recorded run of diffusers had."""
    config = run["scheduler_config"]
    spacing = "karras" if config.get("use_karras_sigmas") else config["timestep_spacing"]
    return {
        "prompt": run["prompt"],
        "negative_prompt": run["negative_prompt"],
        "guidance": run["guidance_scale"],
        "sampler": SAMPLERS[run["scheduler"].split()[0]],
        "steps": run["steps"],
        "spacing": spacing,
        "levels": "diffusers",
        "height": golden["image"].shape[1],
        "width": golden["image"].shape[2],
        "options": {"eta": run["eta"]} if run["eta"] else None,
    }


def recorded(golden, run):
    """Return the latents before every call and after the last, in numbers of unit variance."""
    latents = np.concatenate([golden["sample"][:1], golden["prev_sample"]])
    if run["scheduler"].startswith(("LMS", "Euler")):  # whose numbers are x / sqrt(alphas_bar)
        sigmas = golden["sigmas"][-len(latents) :, None, None, None, None]
        latents = latents / np.sqrt(1 + sigmas**2)
    return channels_last(latents)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1_img2img_lms_ramped.npz", "sd1_img2img_ddim.npz"])
def test_every_step_from_a_picture_is_that_of_diffusers(models, name):
    """The picture is not of 8 bits, so its latent is put in place of that of a grey one."""
    run, golden = RUNS[name], np.load(GOLDENS / name)
    trained, settings = models["sd1"].trained, settings_of(run, golden)
    settings |= {"guidance": ddpm_jax.Guidance(scale=settings["guidance"])}
    settings = {name: value for name, value in settings.items() if value is not None}
    editing = Editing(image=np.zeros((32, 32, 3), np.uint8), strength=run["strength"])
    generator = make_editor(trained, ddpm_jax.Sampling(**settings), editing)
    space, frozen = trained.model.codec.space, trained.weights.frozen
    x, noise = 2 * golden["init_image"] - 1, channels_last(golden["noise_00"])
    z = np.asarray(space.encode(frozen, x, noise=noise))
    for i in (0, 1):
        text = generator.texts._replace(context=generator.texts.context[i : i + 1])
        picture = generator.picture._replace(x_0=z[i])
        one = dataclasses.replace(generator, picture=picture, texts=text)
        start = channels_last(golden["noise_01"])[i : i + 1]
        made = make_trajectory(one, 1, seed=0, batch_size=1, noise=start)
        wanted = recorded(golden, run)[:, i]
        np.testing.assert_allclose(made.x_t[:, 0], wanted, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", CHAINS)
def test_every_step_is_that_of_diffusers(models, name):
    run, golden = RUNS[name], np.load(GOLDENS / name)
    drawn = [golden[f"noise_{i:02}"] for i in range(run["drawn_noises"])]
    made = models[run["model"]].sample(
        **settings_of(run, golden),
        noise=channels_last(golden["initial_noise"]),
        step_noise=channels_last(np.stack(drawn)) if drawn else None,
        trajectory=True,
    )
    wanted = recorded(golden, run)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(made.x_t, wanted, rtol=0, atol=5e-4 * max(1, scale / 10))
    np.testing.assert_allclose(made.x_t[-1], channels_last(golden["latents"]), rtol=0, atol=5e-4)
    np.testing.assert_allclose(made.images / 255, golden["image"], rtol=0, atol=0.5 / 255 + 5e-4)
