"""Stable Diffusion from its directory: every step of whole chains as diffusers computes them.

The goldens are tiny directories and what `StableDiffusionPipeline` made of them; see
`tests/goldens/README.md`. Tolerances: those at which float32 and float64 agree there.
"""

import json
import pathlib

import numpy as np
import pytest

import ddpm_jax

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
# errors of diffusers that are not copied: see "sd1_img2img_lms_ramped.npz" for the first
NOT_COPIED = ("sd1_img2img_lms.npz", "sd1_img2img_pndm.npz")
CHAINS = [name for name, run in RUNS.items() if run["strength"] is None]


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
        latents = latents / np.sqrt(1 + golden["sigmas"] ** 2)[:, None, None, None, None]
    return channels_last(latents)


@pytest.mark.full
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
