"""The setting `levels`: what a generator walks with it, and what is written about it."""

import pathlib

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.editing_settings import Editing
from ddpm_jax.tasks.picture_editing import make_editor
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "runs" / "unet"  # of 20 timesteps
HOW = {"sampler": "lms", "steps": 5, "levels": "diffusers"}


@pytest.fixture(scope="module")
def model():
    return ddpm_jax.load(RUN)


def times(generator):
    return np.asarray(generator.sampler.schedule.timesteps)[::-1].tolist()


def test_the_record_and_the_name_say_so(model):
    generator = make_generator(model.trained, Sampling(**HOW))
    assert times(generator) == [19, 14.25, 9.5, 4.75, 0]
    assert generator.record == {"sampler": "lms", "steps": 5, "levels": "diffusers"}
    assert generator.name().startswith("steps5_lms_diffusers_")
    exact = make_generator(model.trained, Sampling(**HOW | {"levels": "exact"}))
    assert exact.record == {"sampler": "lms", "steps": 5}


def test_a_spacing_that_is_given_is_theirs_and_recorded(model):
    leading = make_generator(model.trained, Sampling(**HOW, spacing="leading"))
    assert times(leading) == [16, 12, 8, 4, 0]
    assert leading.record["spacing"] == "leading"


@pytest.mark.full
def test_a_chain_starts_from_noise_at_their_scale(model):
    generator = make_generator(model.trained, Sampling(**HOW))
    sigma = np.exp(-float(generator.sampler.schedule.half_log_snr[-1]))
    scale = sigma / np.sqrt(sigma**2 + 1)
    exact = model.sample(2, trajectory=True, sampler="lms", steps=5).x_t[0]
    started = model.sample(2, trajectory=True, **HOW).x_t[0]
    np.testing.assert_allclose(started, scale * exact, rtol=1e-6)


def test_a_picture_starts_where_the_truncated_share_says_and_is_not_scaled(model):
    photo = np.full((8, 8, 1), 128, np.uint8)
    editing = Editing(image=photo, strength=0.59)
    generator = make_editor(model.trained, Sampling(**HOW), editing)
    assert times(generator) == [4.75, 0]  # round(0.59 * 5) would be 3
    x_T = generator.start(None, {"noise": np.ones((1, 8, 8, 1)), "x_0": np.zeros((1, 8, 8, 1))})
    levels = model.chain.at()
    below, above = (np.exp(-levels.half_log_snr[t]) for t in (4, 5))
    sigma = 0.25 * below + 0.75 * above
    np.testing.assert_allclose(x_T, sigma / np.sqrt(sigma**2 + 1), rtol=1e-6)


def test_reconstruction_and_repaint_have_levels_of_their_own(model):
    photo, mask = np.zeros((8, 8, 1), np.uint8), np.eye(8, dtype=bool)
    with pytest.raises(UsageError, match="levels diffusers belongs to sampling"):
        model.reconstruct(photo, levels="diffusers")
    with pytest.raises(UsageError, match="levels diffusers belongs to sampling"):
        model.inpaint(photo, mask, levels="diffusers")
