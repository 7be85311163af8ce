"""Stable Diffusion on the command line: where results go, and one sentence for what cannot be."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import ddpm_jax
from ddpm_jax.cli import command, decode, draw, ema, encode, evaluate, sample, samplers
from ddpm_jax.distributed.pmap import replicate
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import pipelines
from ddpm_jax.experiments.model_files import results_of
from ddpm_jax.tasks.sample_files import Samples

from ..conftest import GOLDENS

SD1 = GOLDENS / "sd" / "sd1"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A copy to be changed, and a working directory beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return shutil.copytree(SD1, tmp_path / "models" / "sd")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(capsys, main, *arguments):
    assert command.run(main, list(map(str, arguments))) == command.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_results_go_to_the_working_directory_and_not_into_the_files_of_others(tmp_path):
    run, work = GOLDENS.parent / "fixtures" / "runs" / "unet", SD1 / ".." / "sd1"
    assert results_of(run, "generated") == run / "generated"
    assert str(results_of(work, "generated")) == "generated/sd1"
    assert str(results_of("owner/model-v1.5", "evaluation")) == "evaluation/model-v1.5"
    (tmp_path / "v1-5.ckpt").touch()
    assert str(results_of(tmp_path / "v1-5.ckpt", "pictures")) == "pictures/v1-5"


@pytest.mark.parametrize(
    ("given", "prompts", "images"), [(None, ("a", "b"), 2), (None, None, 64), (5, ("a", "b"), 5)]
)
def test_each_prompt_makes_one_image_unless_a_number_is_asked_for(given, prompts, images):
    assert Samples(num_samples=given).for_prompts(prompts).num_samples == images


@pytest.mark.slow
def test_sampling_leaves_the_model_as_it_is(capsys, directory):
    before = files_in(directory)
    arguments = ["--ckpt", directory, "--prompt", "a dog wearing hat"]
    arguments += ["--steps", 2, "--save_every", 1, "--height", 20, "--width", 28, "--seed", 5]
    assert command.run(sample.command, list(map(str, arguments))) == 0
    assert files_in(directory) == before
    (folder,) = (directory.parents[1] / "work" / "generated" / "sd").iterdir()
    assert {path.name for path in (folder / "on_the_way").iterdir()} == {
        "step_0001.png",
        "step_0002.png",
    }
    (shard,) = folder.glob("samples-*.npz")
    with np.load(shard) as arrays:
        assert [array.shape for array in arrays.values() if array.ndim == 4] == [(1, 20, 28, 3)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["prompt"], manifest["sampler"]) == (["a dog wearing hat"], "lms")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pictures_are_encoded_and_decoded_by_its_vae(capsys, directory, dtype):
    size = 32
    wave = np.sin(np.arange(size) / 6)
    photo = np.uint8(127.5 * (1 + np.stack([np.outer(wave, wave)] * 3, axis=-1)))
    Image.fromarray(photo).save("photo.png")
    given = ["--ckpt", str(directory), "--dtype", dtype]
    assert command.run(encode.main, [*given, "photo.png", "--out", "z.npz"]) == 0
    assert command.run(decode.main, [*given, "z.npz", "--out", "decoded"]) == 0
    z = np.load("z.npz")["latents"]
    assert z.shape == (1, 8, 8, 4)
    model = ddpm_jax.load(directory, dtype=dtype)
    mine = model.encode(photo) / model.trained.weights.frozen.scale
    np.testing.assert_allclose(z[0], mine, atol=1e-4)
    with Image.open("decoded/photo.png") as picture:
        error = np.abs(np.int16(picture) - np.int16(model.decode(model.encode(photo))))
    assert error.max() <= (1 if dtype == "float32" else 3)


SENTENCES = {
    "no prompt": ([], "prompt is missing: this model draws what a text says"),
    "a size": (["--prompt", "a", "--height", 30], "height is 30: give a multiple of 4, as 28 or"),
    "a step": (["--prompt", "a", "--ckpt_step", 3], "holds one set of weights: leave out the step"),
    "a variant": (["--prompt", "a", "--variant", "fp16"], "No part of .* variant 'fp16'"),
    "a type": (["--prompt", "a", "--dtype", "half"], "Unknown dtype 'half': choose one of"),
    "a kind": (
        ["--prompt", "a", "--prediction_type", "epsilon"],
        "prediction_type is for a single file",
    ),
    "labels": (["--prompt", "a", "--labels", 3], "this model was trained without labels"),
}


@pytest.mark.full
@pytest.mark.parametrize("case", SENTENCES)
def test_settings_that_it_cannot_have_are_refused(capsys, directory, case):
    arguments, says = SENTENCES[case]
    line = refused(capsys, sample.command, "--ckpt", directory, "--num_samples", 1, *arguments)
    assert re.search(says, line)


def test_commands_for_runs_say_so(capsys, directory):
    assert "Stable Diffusion" in refused(capsys, ema.main, "--ckpt", directory)
    assert "one VAE" in refused(capsys, draw.main, "--ckpt", directory, "--raw_weights")


DAMAGES = {
    "no folder": (lambda d: shutil.rmtree(d / "vae"), "has no folder vae, which its"),
    "no index": (lambda d: (d / "model_index.json").unlink(), "it has no model_index.json"),
    "no weights": (lambda d: (d / "unet" / WEIGHTS).unlink(), "unet has no weights"),
    "a scheduler": (
        lambda d: edit(d / "scheduler/scheduler_config.json", _class_name="MyScheduler"),
        "Unknown scheduler 'MyScheduler': choose one of DDIMScheduler",
    ),
    "a class": (
        lambda d: edit(d / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
        "is of the class 'UNet3DConditionModel', and known here are UNet2DConditionModel",
    ),
    "layers": (
        lambda d: edit(d / "unet/config.json", layers_per_block=10**6),
        "layers_per_block of the UNet2DConditionModel is 1000000",
    ),
    "layers of the VAE": (
        lambda d: edit(d / "vae/config.json", layers_per_block=10**6),
        "its layers_per_block is 1000000",
    ),
    "layers of the encoder": (
        lambda d: edit(d / "text_encoder/config.json", num_hidden_layers=10**6),
        "its num_hidden_layers is 1000000",
    ),
    "timesteps": (
        lambda d: edit(d / "scheduler/scheduler_config.json", num_train_timesteps=10**9),
        "num_train_timesteps is 1000000000",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_refused_in_a_sentence(capsys, directory, damage):
    change, says = DAMAGES[damage]
    change(directory)
    arguments = "--ckpt", directory, "--prompt", "a", "--num_samples", 1
    assert says in refused(capsys, sample.command, *arguments)


def test_weights_that_are_not_finite_are_refused_by_name(capsys, directory):
    path = directory / "vae" / WEIGHTS
    tensors = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    tensors["decoder.conv_in.bias"][0] = np.inf
    save_file(tensors, path)
    Image.new("RGB", (32, 32)).save("photo.png")
    line = refused(capsys, encode.main, "--ckpt", directory, "photo.png")
    assert "decoder.conv_in.bias" in line


def test_a_tensor_that_is_missing_is_named_with_its_directory(capsys, directory):
    path = directory / "vae" / WEIGHTS
    tensors = load_file(path)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, path)
    Image.new("RGB", (32, 32)).save("photo.png")
    for main, picture in ((encode.main, ["photo.png"]), (sample.command, ["--prompt", "a dog"])):
        line = refused(capsys, main, "--ckpt", directory, *picture)
        assert f"error: {directory}: " in line
        assert "lacks decoder.conv_in.bias" in line
        assert "its files are not whole, or not of one model; fetch them again." in line


def test_a_prompt_is_for_models_that_read_texts():
    model = ddpm_jax.load(GOLDENS.parent / "fixtures" / "runs" / "unet")
    with pytest.raises(UsageError, match="prompt: this model was trained without texts"):
        model.sample(1, prompt="a dog")


@pytest.mark.slow
def test_what_it_says_of_texts_and_of_the_safety_checker(capsys, directory):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit(directory / "model_index.json", safety_checker=checker)
    model = ddpm_jax.load(directory)
    assert capsys.readouterr().err == (
        f"note: {directory} has a safety checker, which is not run here: filtering what the model "
        "draws is up to you.\n"
    )
    with pytest.raises(UsageError, match=r"prompt is \[\]: it must be a text"):
        model.sample(prompt=[])
    model.denoiser(prompt="dog " * 100)
    assert "warning: " in capsys.readouterr().err


def test_updates_are_of_a_network_and_not_of_a_first_stage(capsys, tmp_path):
    arguments = "--ckpt", SD1, "--lora", tmp_path / "updates.safetensors"
    line = refused(capsys, evaluate.main, *arguments, "--metric", "elbo")
    assert "--metric elbo is of a first stage, and --lora updates a U-Net: leave one" in line


@pytest.mark.parametrize("main", [evaluate.main, samplers.main, sample.command])
def test_updates_that_are_not_there_are_missed_before_the_model_is_read(
    capsys, tmp_path, monkeypatch, main
):
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_, **__: pytest.fail("it was read"))
    line = refused(capsys, main, "--ckpt", SD1, "--lora", tmp_path / "updates.safetensors")
    assert "updates.safetensors" in line


@pytest.mark.full
def test_one_device_has_one_copy_of_the_weights():
    """Weights lie on the device from loading on, and what sampling is given are the same buffers."""
    weights = ddpm_jax.load(SD1).trained.weights
    if jax.local_device_count() > 1:
        pytest.skip("each device has a copy")
    leaves, again = map(jax.tree.leaves, (weights.params, replicate(weights.params)))
    assert [x.unsafe_buffer_pointer() for x in leaves] == [x.unsafe_buffer_pointer() for x in again]
