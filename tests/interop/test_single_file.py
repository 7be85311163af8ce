"""Single files of Stable Diffusion in the names of its authors' code.

They are made here of the golden directories, by rules written for this test; that diffusers reads
the same tensors from them is a test too.
"""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.single_file import read_single_file

from ..conftest import GOLDENS

SD = GOLDENS / "sd"
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    ".resnets.": ".block.",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks": "down",
}
NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def replaced(name, table):
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def unet_name(name, blocks, attends):
    """The authors' name of a tensor; `blocks` of a level on the way down."""
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|\w+samplers)\.(\d)\.", name)
    if not found and "attentions" in name:
        return name.replace("mid_block.attentions.0", "middle_block.1")
    if not found:
        return replaced(name, UNET)
    way, level, kind, j = found[1], int(found[2]), found[3], int(found[4])
    rest = name[found.end() :]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        part = 2 if attends[::-1][level] else 1
        return f"output_blocks.{level * (blocks + 1) + blocks}.{part}.{rest}"
    index = level * (blocks + 1) + j + (way == "down")
    side = {"down": "input", "up": "output"}[way]
    if kind == "attentions":
        return f"{side}_blocks.{index}.1.{rest}"
    return f"{side}_blocks.{index}.0.{replaced(rest, UNET)}"


def vae_name(name, levels):
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = replaced(name, VAE)
    for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{new}", f"attn_1.{old}")
    return name


def openclip(tensors):
    """The text encoder in OpenCLIP's names, with its unused last layer."""
    found = {}
    for name, value in tensors.items():
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            new = replaced(name, OPENCLIP).replace("self_attn.q_proj.", "attn.in_proj_")
            found[new] = np.concatenate(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            found[replaced(name, OPENCLIP)] = value
    last = max(int(i) for i in re.findall(r"resblocks\.(\d+)\.", " ".join(found)))
    again = {name.replace(f"blocks.{last}.", f"blocks.{last + 1}."): x for name, x in found.items()}
    width = found["ln_final.bias"].shape[0]
    extra = {
        "text_projection": np.ones((width, 7), np.float32),
        "logit_scale": np.ones(1, np.float32),
    }
    return found | again | extra


def golden_tensors(name):
    """(U-Net, VAE, text encoder) of a golden directory, in new names; the text without prefix."""
    parts = []
    for part in ("unet", "vae", "text_encoder"):
        found = {}
        for file in sorted((SD / name / part).glob("*.safetensors")):
            found |= load_file(file)
        parts.append(found)
    unet, vae, text = parts
    vae = {
        re.sub(
            r"attentions\.0\.(query|key|value|proj_attn)", lambda m: f"attentions.0.{NEW[m[1]]}", k
        ): v
        for k, v in vae.items()
    }
    text = {k.removeprefix("text_model."): v for k, v in text.items() if "position_ids" not in k}
    return unet, vae, text


def single_file(name, *, average=False):
    """All tensors of a golden directory as the authors' code would save them."""
    unet, vae, text = golden_tensors(name)
    config = read_pipeline(SD / name).unet.config
    attends = [kind.startswith("Cross") for kind in config["down_block_types"]]
    blocks, levels = (
        config["layers_per_block"],
        len(
            [k for k in vae if re.match(r"encoder\.down_blocks\.\d\.resnets\.0\.conv1\.weight", k)]
        ),
    )
    found = {"betas": np.zeros(1000, np.float32), "model_ema.decay": np.full(1, 0.9999, np.float32)}
    for key, value in unet.items():
        new = unet_name(key, blocks, attends)
        found[f"model.diffusion_model.{new}"] = value
        if average:
            found["model_ema.diffusion_model" + new.replace(".", "")] = value + 1
    for key, value in vae.items():
        if ".to_" in key and value.ndim == 2:
            value = value[:, :, None, None]
        found[f"first_stage_model.{vae_name(key, levels)}"] = value
    found["first_stage_model.loss.logvar"] = np.zeros(1, np.float32)
    if name == "sd1":
        text = {f"transformer.text_model.{key}": value for key, value in text.items()}
        text["transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
    else:
        text = {f"model.{key}": value for key, value in openclip(text).items()}
    return found | {f"cond_stage_model.{key}": value for key, value in text.items()}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(single_file(request.param, average=True), path)
    return request.param, path


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_tensors_and_sizes_are_those_of_the_directory(saved):
    name, path = saved
    found, wanted = read_single_file(path), read_pipeline(SD / name)
    unet, vae, text = golden_tensors(name)
    assert_same(found.unet.tensors, unet)
    assert_same(found.unet_ema.tensors, {key: value + 1 for key, value in unet.items()})
    assert_same(found.vae.tensors, vae)
    assert_same(found.text_encoder.tensors, text)
    # what leaves no trace in a file, and is as in the released models
    of_released = {
        "attention_head_dim",
        "sample_size",
        "num_attention_heads",
        "eos_token_id",
        "projection_dim",
    }
    for part in ("unet", "vae", "text_encoder"):
        config, expected = getattr(found, part).config, getattr(wanted, part).config
        for field in set(config) & set(expected) - of_released:
            assert config[field] == expected[field] or field[0] == "_", field
    assert len(found.unet.config["down_block_types"]) == len(wanted.unet.config["down_block_types"])
    assert found.unet.config["use_linear_projection"] == (name == "sd2")
    assert found.tokenizer is None


def test_what_follows_from_the_version(saved):
    name, path = saved
    found = read_single_file(path)
    if name == "sd1":
        assert found.scheduler["_class_name"] == "PNDMScheduler"
        assert found.scheduler["prediction_type"] == "epsilon"
        assert found.pad_token == "<|endoftext|>"
        assert found.unet.config["attention_head_dim"] == 8
    else:
        assert found.scheduler["_class_name"] == "DDIMScheduler"
        assert found.scheduler["prediction_type"] == "v_prediction"
        assert found.pad_token == "!"
        base = read_single_file(path, prediction_type="epsilon")
        assert base.scheduler["prediction_type"] == "epsilon"
    with pytest.raises(UsageError, match="Unknown prediction_type 'sample'"):
        read_single_file(path, prediction_type="sample")


@pytest.mark.full  # importing diffusers takes seconds
def test_diffusers_reads_the_same_tensors(saved):
    """The files of these tests are such as its converters know."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils as theirs

    name, path = saved
    unet, vae, _ = golden_tensors(name)
    pipeline = read_pipeline(SD / name)
    tensors = {key: torch.tensor(value) for key, value in load_file(path).items()}
    found = theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(pipeline.unet.config))
    assert_same({key: value.numpy() for key, value in found.items()}, unet)
    found = theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(pipeline.vae.config))
    assert_same({key: value.numpy() for key, value in found.items()}, vae)


def test_a_ckpt_of_pytorch_is_the_same_model(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = single_file("sd1")
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "model.ckpt")
    found = read_single_file(tmp_path / "model.ckpt")
    unet, vae, text = golden_tensors("sd1")
    assert_same(found.unet.tensors, unet)
    assert_same(found.vae.tensors, vae)
    assert_same(found.text_encoder.tensors, text)
    assert found.unet_ema is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith("first_stage")}, "it has no VAE under"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("model.")}, "it has no U-Net under"),
        (lambda t: {"x": np.zeros(2)}, "no U-Net and no VAE and no text encoder"),
        (lambda t: t | {"conditioner.embedders.0.x": np.zeros(2)}, "is a Stable Diffusion XL"),
        (lambda t: {k: v for k, v in t.items() if "input_blocks.0.0" not in k}, r"The U-Net in .* lacks tensors"),
        (lambda t: {k: v for k, v in t.items() if "encoder.conv_in" not in k}, "The VAE in the file lacks"),
        (lambda t: {k: v for k, v in t.items() if "token_embedding" not in k}, "The text encoder in the file lacks"),
        (lambda t: {k: v[..., :9] if "attn2.to_k" in k else v for k, v in t.items()}, "features of 9 numbers, and its text encoder gives 48"),
    ],
)  # fmt: skip
def test_what_is_no_stable_diffusion_is_refused(tmp_path, change, said):
    tensors = {
        name: np.ascontiguousarray(value) for name, value in change(single_file("sd1")).items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=said):
        read_single_file(tmp_path / "model.safetensors")
