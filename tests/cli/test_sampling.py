"""`python sample.py` with the flags that say how: sampler, steps, spacing, options, labels."""

import json

import pytest
from PIL import Image

from ddpm_jax.experiments.identity import identity
from ddpm_jax.experiments.run_settings import model_from_settings
from ddpm_jax.experiments.trained_model import TrainedModel


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def test_results_are_of_the_weights_and_of_what_a_config_makes_of_them():
    def described(sha256, **fields):
        values = {"diffusion": {"variance": "fixed_large"}, "train": {"num_steps": 10}} | fields
        model = model_from_settings(values, source="the config")
        return identity(TrainedModel(model, {}, 10, "ema", sha256))

    ours = described("a" * 64)
    assert described("a" * 64, train={"num_steps": 20}, optimizer={"b1": 0.5}) == ours
    assert described("b" * 64) != ours
    assert described("a" * 64, diffusion={"variance": "fixed_small"}) != ours
    assert ours["random_numbers"] == "threefry2x32"


@pytest.mark.full
def test_a_sampler_its_spacing_and_options_are_recorded_and_have_a_folder_of_their_own(
    invoke, copied
):
    flags = [
        "--sampler",
        "ddim",
        "--steps",
        5,
        "--spacing",
        "karras",
        "--sampler_options",
        "eta=0.5",
    ]
    result = invoke("sample", "--ckpt", copied, "--num_samples", 4, *flags)
    assert result.code == 0, result.err
    assert "ddim, 5 steps, 5 network evaluations" in result.out
    (out,) = (copied / "generated").iterdir()
    wanted = {"sampler": "ddim", "steps": 5, "spacing": "karras", "sampler_options": {"eta": 0.5}}
    assert manifest(out).items() >= wanted.items()
    again = invoke("sample", "--ckpt", copied, "--num_samples", 4, *flags[:-1], "eta=0.25")
    assert again.code == 0
    assert len(list((copied / "generated").iterdir())) == 2


@pytest.mark.full
def test_a_list_of_timesteps_is_a_spacing_and_says_the_number_of_steps(invoke, copied, tmp_path):
    argv = [
        "--ckpt",
        copied,
        "--num_samples",
        2,
        "--sampler",
        "euler",
        "--spacing",
        "19,7.5,0",
        "--out",
        tmp_path / "o",
    ]
    assert invoke("sample", *argv).code == 0
    assert manifest(tmp_path / "o").items() >= {"steps": 3, "spacing": [19, 7.5, 0]}.items()
    with Image.open(tmp_path / "o" / "grid.png") as grid:
        assert grid.size == (2 * 66 + 2, 66 + 2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sampler", "dim"], ["Unknown sampler 'dim'", "Did you mean 'ddim'"]),
        (["--spacing", "karas"], ["Unknown spacing 'karas'", "Did you mean 'karras'"]),
        (["--steps", 21], ["steps is 21", "choose 1 to 20"]),
        (["--steps", 0], ["steps is 0", "whole number in 1.."]),
        (["--spacing", "19,7,7"], ["must differ and lie in 0..19"]),
        (["--spacing", "20,7"], ["must differ and lie in 0..19"]),
        (["--spacing", "19,,7"], ["no list of timesteps"]),
        (["--spacing", "19,7", "--steps", 3], ["steps is 3", "has 2"]),
        (
            ["--sampler_options", "eta=1"],
            ["The sampler ancestral has no option eta", "it has no options"],
        ),
        (["--sampler", "ddim", "--sampler_options", "eta"], ["give each option as NAME=X"]),
        (
            ["--sampler", "ddim", "--sampler_options", "eta=much"],
            ["eta", "'much'", "it must be a number"],
        ),
        (["--sampler", "ddim", "--sampler_options", "eta=2"], ["eta is 2", "choose 0"]),
        (
            ["--sampler", "ddim", "--sampler_options", "churn=2"],
            ["no option churn", "its options are eta"],
        ),
        (["--labels", "3"], ["trained without labels"]),
        (["--sampler", "ddim", "--shared_latents"], ["walk the ancestral chain", "--sampler ddim"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_compiles(refused, trained, flags, says):
    refused("sample", "--ckpt", trained, *flags, says=says)
