"""Invalid fields and sizes of the U-Net are refused in one sentence before anything compiles."""

import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.models.unet import UNet, check_unet


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (32, 32)),
        ({"resolution": 256, "ch_mult": (1, 1, 2, 2, 4, 4)}, (256, 192)),
        (
            {
                "resolution": 8,
                "ch": 32,
                "ch_mult": (1, 2),
                "attn_resolutions": (4,),
                "num_heads": 4,
            },
            (8, 8),
        ),
        (
            {
                "ch": 96,
                "ch_mult": (1, 3),
                "attn_resolutions": (),
                "dtype": "bfloat16",
                "out_channels": 6,
            },
            (2, 2),
        ),
        ({"ch": 48, "ch_mult": (1, 1.5, 1 / 3), "norm_groups": 8}, (8, 8)),
        ({"mid_block": "none", "head_channels": 192, "ch_mult": (1, 1.5, 1)}, (8, 8)),
        ({"block_down": (0, 2), "block_up": (3,), "resampling": "pool"}, (8, 8)),
        # ImageNet 512 x 512 of Dhariwal and Nichol (2021)
        (
            {
                "resolution": 512,
                "ch_mult": (1, 2, 2, 4, 4, 8, 8),
                "attn_resolutions": (32, 16, 8),
                "resampling": "block",
                "head_channels": 64,
                "time_channels": 256,
            },
            (512, 512),
        ),
    ],
)
def test_what_can_be_built_is_accepted(fields, size):
    check_unet(UNet(**fields), *size)


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, (36, 32), "height 36 is not divisible by 8"),
        ({}, (32, 28), "width 28 is not divisible by 8"),
        ({}, (0, 32), "height 0"),
        (
            {"resolution": 20, "attn_resolutions": ()},
            (32, 32),
            "resolution 20 is not divisible by 8",
        ),
        ({"ch": 48}, (32, 32), "48 channels .* 32 groups"),
        ({"ch": 0}, (32, 32), "ch is 0"),
        ({"ch": 32.0}, (32, 32), r"ch is 32\.0"),
        ({"ch_mult": ()}, (32, 32), "ch_mult is empty"),
        ({"ch_mult": (1, 0)}, (32, 32), r"ch_mult\[1\] is 0"),
        ({"num_res_blocks": 0}, (32, 32), "num_res_blocks is 0"),
        ({"out_channels": 0}, (32, 32), "out_channels is 0"),
        ({"num_heads": 0}, (32, 32), "num_heads is 0"),
        ({"num_heads": 3}, (32, 32), "num_heads 3 does not divide the 256 channels"),
        ({"attn_resolutions": (16, 7)}, (32, 32), "attn_resolutions names 7, .* 32, 16, 8, 4"),
        ({"dropout": 1.0}, (32, 32), r"dropout is 1\.0"),
        ({"dropout": -0.1}, (32, 32), r"dropout is -0\.1"),
        ({"norm_eps": 0.0}, (32, 32), r"norm_eps is 0\.0"),
        (
            {"time_embedding": "cos_sine"},
            (32, 32),
            "Unknown time embedding 'cos_sine'.* Did you mean 'cos_sin'",
        ),
        (
            {"downsample_padding": "ends"},
            (32, 32),
            "Unknown downsample padding 'ends'.* Did you mean 'end'",
        ),
        ({"ch": 32, "ch_mult": (1, 1.26)}, (32, 32), r"40\.32 channels .* 32 groups"),
        ({"ch_mult": (1, 1e-9)}, (32, 32), "channels .* 32 groups"),
        ({"ch_mult": (1, float("nan"))}, (32, 32), r"ch_mult\[1\] is nan"),
        ({"norm_groups": 0}, (32, 32), "norm_groups is 0"),
        ({"norm_groups": 48}, (32, 32), "128 channels .* 48 groups"),
        ({"mid_block": "block"}, (32, 32), "Unknown middle 'block'.* Did you mean 'blocks'"),
        ({"block_down": (3,)}, (32, 32), "block_down names the level 3, .* among 0, 1, 2"),
        ({"block_up": (0,)}, (32, 32), "block_up names the level 0, .* among 1, 2, 3"),
        ({"resampling": "pooling"}, (32, 32), "Unknown resampling 'pooling'"),
        ({"qkv_order": "head"}, (32, 32), "Unknown order of q, k and v 'head'"),
        ({"num_heads_up": 3}, (32, 32), "num_heads_up 3 does not divide the 256 channels"),
        ({"head_channels": 96}, (32, 32), "head_channels 96 does not divide the 256 channels"),
        ({"head_channels": 64, "num_heads_up": 2}, (32, 32), "num_heads_up is 2, .* set one"),
        ({"time_channels": -1}, (32, 32), "time_channels is -1"),
        ({"dtype": "int32"}, (32, 32), "dtype is 'int32'"),
        ({"dtype": "bf16"}, (32, 32), "dtype is 'bf16'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_value_named(fields, size, words):
    with pytest.raises(UsageError, match=words):
        check_unet(UNet(**fields), *size)
