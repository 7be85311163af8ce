"""What configs of diffusers' `UNet2DConditionModel` mean, and which are refused."""

import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_from_config, text_unet_to_config
from ddpm_jax.models.text_unet import TextUNet, check_text_unet

# the config.json of Stable Diffusion 1.4, from before most options
STABLE_DIFFUSION_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
STABLE_DIFFUSION_2 = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
    "sample_size": 96,
}


def test_the_defaults_of_the_network_are_stable_diffusion_1():
    assert text_unet_from_config(STABLE_DIFFUSION_1) == TextUNet(null_class=False)
    assert text_unet_from_config({"cross_attention_dim": 768}) == TextUNet(null_class=False)


def test_stable_diffusion_2_differs_in_heads_text_and_size():
    unet = text_unet_from_config(STABLE_DIFFUSION_1 | STABLE_DIFFUSION_2)
    assert unet == TextUNet(
        resolution=96,
        attn_resolutions=(96, 48, 24),
        num_heads=(5, 10, 20, 20),
        context_size=1024,
        linear_projection=True,
        upcast_attention=True,
        null_class=False,
    )
    check_text_unet(unet, 96, 64)


def test_a_null_class_is_one_of_their_classes():
    unet = TextUNet(num_classes=10)
    assert text_unet_to_config(unet, 64, 4)["num_class_embeds"] == 11
    assert text_unet_to_config(TextUNet(), 64, 4)["num_class_embeds"] is None


def test_widths_need_be_no_multiples_and_groups_not_32():
    options = {"block_out_channels": [320, 480, 640, 400], "norm_num_groups": 16}
    unet = text_unet_from_config(STABLE_DIFFUSION_1 | options)
    assert (unet.ch_mult, unet.widths, unet.norm_groups) == (
        (1, 1.5, 2, 1.25),
        (320, 480, 640, 400),
        16,
    )
    written = text_unet_to_config(unet, 64, 4)
    assert {name: written[name] for name in options} == options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention = true"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type = "),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow = 3"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"act_fn": "gelu"}, "act_fn = "),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "the same levels as on the way down"),
        ({"layers_per_block": [1, 2, 2, 2]}, "the same for all levels"),
        ({"cross_attention_dim": [768, 768, 640, 768]}, "the same for all levels"),
        ({"attention_head_dim": [8, 8]}, "a whole number, or 4 of these"),
        ({"transformer_layers_per_block": [[1, 1], 1, 1, 1]}, "transformer_layers_per_block"),
        ({"block_out_channels": "320"}, "a list of whole numbers"),
        ({"block_out_channels": [320, 640, 1280, 0]}, "a whole number in 1..65536"),
        ({"layers_per_block": 10**6}, "a whole number in 1..32"),
        ({"transformer_layers_per_block": 10**6}, "a whole number in 1..32"),
        ({"transformer_layers_per_block": [1, 1, 1, 0]}, "a whole number in 1..32"),
        ({"attention_head_dim": -8}, "a whole number in 1..65536"),
        ({"block_out_channels": [32] * 11}, "each of 1 to 10 levels"),
        ({"num_class_embeds": 10**9}, "a whole number in 1..65536"),
        ({"freq_shift": 2}, "flip_sin_to_cos, freq_shift"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"norm_eps": "small"}, "a number"),
        ({"num_class_embeds": -1}, "num_class_embeds"),
        ({"sample_size": 0}, "sample_size"),
        ({"upcast_attention": "yes"}, "upcast_attention"),
        ({"mid_block_type": ["a"]}, "mid_block_type"),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_option(options, said):
    with pytest.raises(UsageError, match="UNet2DConditionModel") as refused:
        text_unet_from_config(STABLE_DIFFUSION_1 | options)
    assert said in str(refused.value)


def test_options_at_their_default_and_those_without_effect_are_passed_over():
    more = {
        "an_option_of_tomorrow": None,
        "another": False,
        "resnet_out_scale_factor": 1.0,
        "addition_embed_type_num_heads": 64,
        "mid_block_only_cross_attention": True,
        "decay": 0.9999,
        "optimization_step": 237_000,
    }
    assert text_unet_from_config(STABLE_DIFFUSION_1 | more) == TextUNet(null_class=False)
