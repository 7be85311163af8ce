"""The U-Net's names in the authors' files, against those that are known of Stable Diffusion's."""

import pytest

from ddpm_jax.interop.compvis import unet_names_from_compvis
from ddpm_jax.interop.diffusers_text_unet import tensor_name

PREFIX = "model.diffusion_model."
# of Stable Diffusion 1.4 in both layouts, without .weight
KNOWN = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.0": "down_blocks.0.resnets.0.norm1",
    "input_blocks.2.1.transformer_blocks.0.attn1.to_q": (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    ),
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.4.0.emb_layers.1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks.6.0.op": "down_blocks.1.downsamplers.0.conv",
    "input_blocks.9.0.op": "down_blocks.2.downsamplers.0.conv",
    "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
    "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
    "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
    "middle_block.2.out_layers.0": "mid_block.resnets.1.norm2",
    "output_blocks.0.0.in_layers.0": "up_blocks.0.resnets.0.norm1",
    "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",  # no attention on this level
    "output_blocks.3.1.norm": "up_blocks.1.attentions.0.norm",
    "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj": (
        "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"
    ),
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def whole_file():
    names = {f"{PREFIX}{name}.weight": f"{theirs}.weight" for name, theirs in KNOWN.items()}
    return names, [*names, "first_stage_model.decoder.conv_in.weight", "betas"]


def test_names_of_the_authors_become_those_of_diffusers():
    names, file = whole_file()
    assert unet_names_from_compvis(file) == names


def test_a_file_of_the_network_alone_has_no_prefix():
    names, _ = whole_file()
    alone = {name.removeprefix(PREFIX): theirs for name, theirs in names.items()}
    assert unet_names_from_compvis(alone) == alone


def test_averages_have_the_same_names_without_dots():
    names, file = whole_file()
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): theirs
        for name, theirs in names.items()
    }
    assert unet_names_from_compvis([*file, *averages, "model_ema.decay"], average=True) == averages


def test_a_name_that_is_not_understood_stays_and_is_reported_by_the_reader():
    assert unet_names_from_compvis([f"{PREFIX}controls.0.weight"]) == {
        f"{PREFIX}controls.0.weight": "controls.0.weight"
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("down_0_attn_1", "block_2", "attn1", "q", "kernel"),
         "down_blocks.0.attentions.1.transformer_blocks.2.attn1.to_q.weight"),
        (("up_0_attn_0", "block_0", "attn2", "proj_out", "bias"),
         "up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"),
        (("mid_attn_1", "proj_out", "kernel"), "mid_block.attentions.0.proj_out.weight"),
        (("mid_attn_1", "norm", "scale"), "mid_block.attentions.0.norm.weight"),
        (("mid_block_1", "conv1", "kernel"), "mid_block.resnets.0.conv1.weight"),
        (("class_embedding", "embedding"), "class_embedding.weight"),
    ],
)  # fmt: skip
def test_our_parameters_have_these_names(path, name):
    assert tensor_name(path, 4) == name
