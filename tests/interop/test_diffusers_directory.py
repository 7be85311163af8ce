"""Directories in diffusers' layout: what is read of them, and what each defect is called."""

import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.autoencoder_config import autoencoder_from_config, autoencoder_to_config
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.diffusers_directory import SCHEDULERS, read_pipeline
from ddpm_jax.interop.weight_files import find_weights
from ddpm_jax.models.autoencoder import Autoencoder

from ..conftest import GOLDENS

SD = GOLDENS / "sd"
VAE = "diffusion_pytorch_model"


@pytest.fixture
def directory(tmp_path):
    """A copy of the second golden directory, to be changed."""
    return shutil.copytree(SD / "sd2", tmp_path / "sd")


def edit(path, **changes):
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: x for name, x in fields.items() if x is not None}))


def refusal(path, **kwargs):
    with pytest.raises(UsageError) as error:
        read_pipeline(path, **kwargs)
    return str(error.value)


@pytest.mark.full
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_vae_of_a_directory_decodes_as_in_diffusers(name):
    part = read_pipeline(SD / name).vae
    fields, scale = autoencoder_from_config(part.config)
    model, goldens = Autoencoder(**fields), np.load(SD / f"{name}_vae.npz")
    params = autoencoder_params_from_diffusers(part.tensors, model)
    latents = goldens["latents"].transpose(0, 2, 3, 1)
    decode = jax.jit(functools.partial(model.apply, method="decode"))
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    images = decode({"params": params}, latents)
    assert scale == 0.18215  # sd1 does not say so
    # float32 of another library is 1e-6 away, values are up to 2.4
    np.testing.assert_allclose(images, goldens["decoded"].transpose(0, 2, 3, 1), atol=1e-5)
    moments = encode({"params": params}, goldens["image"].transpose(0, 2, 3, 1))
    mean, log_variance = np.split(np.asarray(moments).transpose(0, 3, 1, 2), 2, axis=1)
    np.testing.assert_allclose(mean, goldens["mean"], atol=1e-4)
    np.testing.assert_allclose(log_variance, goldens["logvar"], atol=1e-4)


def test_parts_have_configs_and_tensors_of_the_files(directory):
    pipeline = read_pipeline(directory)
    assert pipeline.kind == "StableDiffusionPipeline"
    assert pipeline.unet.config["cross_attention_dim"] == 64
    assert pipeline.text_encoder.config["hidden_act"] == "gelu"
    assert pipeline.scheduler["prediction_type"] == "v_prediction"
    assert pipeline.tokenizer == directory / "tokenizer"
    assert pipeline.unet_ema is None
    assert not pipeline.has_safety_checker
    shards = sorted((directory / "unet").glob("*.safetensors"))
    whole = load_file(shards[0]) | load_file(shards[1])
    assert set(pipeline.unet.tensors) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(pipeline.unet.tensors[name], value)


def test_averages_of_the_unet_and_a_safety_checker_are_found(directory):
    shutil.copytree(directory / "unet", directory / "unet_ema")
    edit(directory / "unet_ema/config.json", decay=0.9999)
    edit(
        directory / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    pipeline = read_pipeline(directory)
    assert pipeline.unet_ema.config["decay"] == 0.9999
    assert len(pipeline.unet_ema.tensors) == len(pipeline.unet.tensors)
    assert pipeline.has_safety_checker


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_known_schedulers_are_read(directory, scheduler):
    edit(directory / "scheduler/scheduler_config.json", _class_name=scheduler)
    edit(directory / "model_index.json", scheduler=["diffusers", scheduler])
    assert read_pipeline(directory).scheduler["_class_name"] == scheduler


@pytest.fixture
def vae(directory):
    """The VAE's folder without weights, and its weights."""
    path = directory / f"vae/{VAE}.safetensors"
    tensors = load_file(path)
    path.unlink()
    return directory / "vae", tensors


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_bit_for_bit(vae, dtype):
    folder, tensors = vae
    halved = {name: value.astype(dtype) for name, value in tensors.items()}
    save_file(halved, folder / f"{VAE}.safetensors")
    found = find_weights(folder)
    for name, value in halved.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], value)


def test_which_file_is_taken(vae):
    folder, tensors = vae

    def write(name, number):
        tensors["encoder.conv_in.bias"] = np.full(3, number, np.float32)
        save_file(tensors, folder / name)

    def taken(variant=None):
        return find_weights(folder, variant)["encoder.conv_in.bias"][0]

    write(f"{VAE}.fp16.safetensors", 1)
    assert taken() == 1  # the only variant there is
    write(f"{VAE}.non_ema.safetensors", 2)
    with pytest.raises(UsageError, match="several variants: name one of fp16, non_ema"):
        taken()
    (folder / f"{VAE}.bin").write_bytes((folder / f"{VAE}.non_ema.safetensors").read_bytes())
    assert taken() == 2  # without a variant, though not safetensors by its name
    write(f"{VAE}.safetensors", 3)
    assert taken() == 3
    assert (taken("fp16"), taken("non_ema")) == (1, 2)
    with pytest.raises(UsageError, match="no weights of the variant 'fp32'"):
        taken("fp32")


def test_a_variant_of_one_part_leaves_the_others(directory):
    weights = directory / f"vae/{VAE}.safetensors"
    weights.rename(directory / f"vae/{VAE}.fp16.safetensors")
    pipeline = read_pipeline(directory, variant="fp16")
    assert len(pipeline.vae.tensors) == 120
    assert len(pipeline.unet.tensors) == 208
    assert "the variant 'fp8': there are fp16" in refusal(directory, variant="fp8")


@pytest.mark.parametrize("name", [f"{VAE}.safetensors.index.fp16", f"{VAE}.fp16.safetensors.index"])
def test_shards_of_a_variant(vae, name):
    folder, tensors = vae
    halves = dict(list(tensors.items())[:50]), dict(list(tensors.items())[50:])
    shards = [f"{VAE}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, half in zip(shards, halves, strict=True):
        save_file(half, folder / shard)
    places = {name: shards[name in halves[1]] for name in tensors}
    (folder / f"{name}.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = find_weights(folder, "fp16")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: shutil.rmtree(d / "vae"), "has no folder vae"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "has no folder tokenizer"),
        (lambda d: (d / "vae/config.json").unlink(), "vae/config.json cannot be read"),
        (lambda d: (d / "vae/config.json").write_text("{"), "vae/config.json is damaged"),
        (lambda d: (d / f"vae/{VAE}.safetensors").unlink(), "vae has no weights"),
        (lambda d: (d / f"vae/{VAE}.safetensors").write_bytes(b"x" * 99), "is neither a whole"),
        (lambda d: (d / "tokenizer/tokenizer.json").unlink(), "has neither tokenizer.json nor"),
        (lambda d: edit(d / "model_index.json", unet=[None, None]), "has no unet: its model_index"),
        (lambda d: edit(d / "model_index.json", vae=["diffusers", "VQModel"]), "'VQModel', and known here are AutoencoderKL"),
        (lambda d: edit(d / "model_index.json", scheduler=["diffusers", "EDMScheduler"]), "known here are DDIMScheduler, DDPMScheduler, DPMSolver"),
        (lambda d: edit(d / "model_index.json", _class_name="StableDiffusionXLPipeline"), "Unknown pipeline 'StableDiffusionXLPipeline': choose one of StableDiffusionImg2Img"),
        (lambda d: edit(d / "model_index.json", _class_name=None), "model_index.json is damaged: it has no _class_name"),
        (lambda d: edit(d / "scheduler/scheduler_config.json", _class_name="Magic"), "Unknown scheduler 'Magic'"),
        (lambda d: (d / "unet" / f"{VAE}-00002-of-00002.safetensors").unlink(), "which diffusion_pytorch_model.safetensors.index.json names"),
        (lambda d: shutil.copy(d / "unet" / f"{VAE}-00001-of-00002.safetensors", d / "unet" / f"{VAE}-00002-of-00002.safetensors"), "has no tensor"),
        (lambda d: edit(d / "unet" / f"{VAE}.safetensors.index.json", weight_map={"a": "../x"}), "index.json is damaged: its weight_map.a is"),
        (lambda d: (d / "model_index.json").unlink(), "is no model in diffusers' layout"),
    ],
)  # fmt: skip
def test_a_damaged_directory_is_refused_in_a_sentence(directory, damage, said):
    damage(directory)
    assert said in refusal(directory)


@pytest.mark.parametrize(
    ("part", "kind"),
    [("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"), ("text_encoder", "clip_text")],
)
def test_a_part_alone_is_called_so(part, kind):
    said = refusal(SD / "sd2" / part)
    assert "is one part of a model" in said
    assert kind in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu'"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"shift_factor": 0.1}, "shift_factor = 0.1"),
        ({"new_option": "yes"}, "new_option = 'yes'"),
        ({"block_out_channels": [32, 48]}, "multiples of the first"),
        ({"block_out_channels": 7}, "block_out_channels is no list"),
        ({"down_block_types": "DownEncoderBlock2D"}, "down_block_types is no list"),
        ({"layers_per_block": 1.5}, "layers_per_block is 1.5"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "the same way up"),
        ({"down_block_types": ["DownEncoderBlock2D", "Other"]}, "the same way up"),
    ],
)
def test_a_vae_that_cannot_be_built_is_refused(changes, said):
    config = read_pipeline(SD / "sd2").vae.config
    with pytest.raises(UsageError, match=said):
        autoencoder_from_config(config | changes)
    autoencoder_from_config(config | {"new_option": None, "other": False, "_made_by": "x"})


def test_config_of_a_vae_and_back():
    config = read_pipeline(SD / "sd1").vae.config | {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "scaling_factor": 0.3,
        "norm_num_groups": 16,
    }
    fields, scale = autoencoder_from_config(config)
    assert fields["attn_resolutions"] == (16,)
    assert fields["ch_mult"] == (1, 2, 2)
    assert fields["norm_groups"] == 16
    # from float32, as the scale of a run is kept
    written = autoencoder_to_config(Autoencoder(**fields), float(np.float32(scale)))
    assert written.items() <= config.items()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_directory_with_files_of_pytorch_is_the_same(directory, zipped):
    torch = pytest.importorskip("torch")
    before = read_pipeline(SD / "sd2")
    for part, name in (("vae", f"{VAE}.bin"), ("text_encoder", "pytorch_model.bin")):
        (path,) = (directory / part).glob("*.safetensors")
        state = {key: torch.tensor(value) for key, value in load_file(path).items()}
        torch.save(state, directory / part / name, _use_new_zipfile_serialization=zipped)
        path.unlink()
        found, wanted = getattr(read_pipeline(directory), part), getattr(before, part)
        assert set(found.tensors) == set(wanted.tensors)
        for key, value in wanted.tensors.items():
            np.testing.assert_array_equal(found.tensors[key], value)
