"""Directories in diffusers' layout that are written here: the same bits again, and diffusers' too."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ddpm_jax.archives import BadArchive, read_safetensors, write_safetensors
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.diffusers_writing import pipeline_from_params, write_pipeline
from ddpm_jax.interop.pipeline_params import pipeline_networks, pipeline_params

from ..conftest import GOLDENS

SD = GOLDENS / "sd"
PARTS = ("unet", "vae", "text_encoder")


def ours(name, **kwargs):
    """A golden directory read to our parameters, and given diffusers' names again."""
    pipeline = read_pipeline(SD / name)
    networks = pipeline_networks(pipeline)
    params = pipeline_params(pipeline, networks, **kwargs)
    return pipeline_from_params(
        networks, params, scheduler=pipeline.scheduler, sample_size=8, tokenizer=pipeline.tokenizer
    )


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_what_is_written_is_read_again_bit_for_bit(tmp_path, name):
    written = ours(name)
    write_pipeline(tmp_path / "sd", written, license="openrail++")
    found, before = read_pipeline(tmp_path / "sd"), read_pipeline(SD / name)
    assert pipeline_networks(found) == pipeline_networks(before)
    assert found.scheduler == before.scheduler
    for part in PARTS:
        tensors, wanted = getattr(found, part).tensors, getattr(written, part).tensors
        assert set(tensors) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(tensors[key], value)
    index = json.loads((tmp_path / "sd/model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["requires_safety_checker"] is False
    card = (tmp_path / "sd/README.md").read_text()
    assert "license: openrail++\n" in card
    assert f"{sum(value.size for value in written.unet.tensors.values()):,}" in card
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


def test_names_are_those_of_the_second_golden():
    """`sd2` has the names that diffusers writes today; the text encoder's have a prefix here."""
    written, golden = ours("sd2"), read_pipeline(SD / "sd2")
    for part in PARTS:
        wanted, found = getattr(golden, part).tensors, getattr(written, part).tensors
        assert {name.removeprefix("text_model.") for name in found} == set(wanted)
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name.removeprefix("text_model.")])


def test_a_directory_is_copied_with_its_types_and_averages(tmp_path):
    tensors = {"a": np.arange(3, dtype=ml_dtypes.bfloat16), "b": np.ones((2, 2), np.float16)}
    golden = read_pipeline(SD / "sd2")
    part = golden.unet.__class__(golden.unet.config, tensors)
    changed = golden.__class__(**vars(golden) | {"unet_ema": part, "has_safety_checker": True})
    write_pipeline(tmp_path / "sd", changed)
    found = read_pipeline(tmp_path / "sd")
    assert found.unet_ema.tensors["a"].dtype == ml_dtypes.bfloat16
    assert found.unet_ema.tensors["b"].dtype == np.float16
    assert not found.has_safety_checker


def test_an_existing_directory_is_refused_and_a_failure_leaves_nothing(tmp_path):
    golden = read_pipeline(SD / "sd2")
    (tmp_path / "sd").mkdir()
    with pytest.raises(UsageError, match="exists: name a new directory"):
        write_pipeline(tmp_path / "sd", golden)

    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(FailureError, match="No space left"):
        write_pipeline(tmp_path / "new", golden, tokenizer=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]
    without = golden.__class__(**vars(golden) | {"tokenizer": None})
    with pytest.raises(UsageError, match="no tokenizer"):
        write_pipeline(tmp_path / "new", without)


def test_safetensors_are_such_as_their_library_reads(tmp_path):
    tensors = {
        "half": np.arange(3, dtype=np.float16),
        "double": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float32(2),
        "empty": np.zeros((0, 4), np.int8),
        "true": np.array([True, False, True]),
    }
    write_safetensors(tmp_path / "x", tensors, {"format": "pt"})
    for found in (load_file(tmp_path / "x"), read_safetensors((tmp_path / "x").read_bytes())):
        assert set(found) == set(tensors)
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    with safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(BadArchive, match="complex64"):
        write_safetensors(tmp_path / "y", {"z": np.zeros(2, np.complex64)})
    assert not (tmp_path / "y").exists()


@pytest.mark.full  # importing diffusers takes seconds
@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_the_golden_images_with_what_is_written(tmp_path):
    """The pipeline of diffusers, the golden's initial noise, every weight through our layout."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    golden, outputs = np.load(SD / "sd2_v_ddim.npz"), json.loads((SD / "outputs.json").read_text())
    (run,) = (run for run in outputs["sd2"]["runs"] if run["file"] == "sd2_v_ddim.npz")
    write_pipeline(tmp_path / "sd", ours("sd2"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd")
    assert pipeline.safety_checker is None
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        run["prompt"],
        num_inference_steps=run["steps"],
        guidance_scale=run["guidance_scale"],
        latents=torch.tensor(golden["initial_noise"]),
        output_type="np",
    ).images
    # as far as one chain in float32 may be from another
    np.testing.assert_allclose(images, golden["image"], atol=5e-4)
