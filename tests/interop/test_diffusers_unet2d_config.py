"""Configs of diffusers' `UNet2DModel` as our U-Net, and back; with PyTorch, its outputs too."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import unet_params_from_diffusers, unet_params_to_diffusers
from ddpm_jax.interop.diffusers_unet2d_config import unet2d_from_config, unet2d_to_config
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.unet import UNet, check_unet

from .conftest import perturbed, state_dict

GOOGLE_CIFAR10 = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = {
    "sample_size": 16,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
ATTENTION_EVERYWHERE = {
    "down_block_types": ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3,
}
BLOCKS_BETWEEN = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}


def test_the_network_of_google_is_that_of_ddpm_on_cifar10():
    assert unet2d_from_config(GOOGLE_CIFAR10) == UNet(dropout=0.0)


def test_options_that_a_file_leaves_out_are_those_of_the_class():
    unet = unet2d_from_config({"sample_size": 64})
    assert unet == UNet(
        resolution=64,
        ch=224,
        ch_mult=(1, 2, 3, 4),
        attn_resolutions=(32, 16, 8),
        head_channels=8,
        dropout=0.0,
        norm_eps=1e-5,
        downsample_padding="both",
        time_embedding="cos_sin",
    )
    check_unet(unet, 64, 64)


CASES = {
    "as in the training script": {"dropout": 0.1},
    "attention on all levels": ATTENTION_EVERYWHERE,
    "heads of 16 channels": ATTENTION_EVERYWHERE | {"attention_head_dim": 16},
    "one head": ATTENTION_EVERYWHERE | {"attention_head_dim": None},
    "no attention but in the middle": {
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 3,
    },
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "widths that are no multiples": {"block_out_channels": [64, 96, 32], "attention_head_dim": 16},
    "8 groups": {"norm_num_groups": 8, "block_out_channels": [16, 24, 8]},
    "one block down, attention down by convolution": {"upsample_type": "resnet"},
    "blocks between all levels": BLOCKS_BETWEEN,
    "blocks between, attention everywhere": ATTENTION_EVERYWHERE | {"downsample_type": "resnet"},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "out_channels": 6},
    "scale and shift, a norm in the middle": BLOCKS_BETWEEN
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
    "two blocks of a level": {"layers_per_block": 2, "norm_eps": 0.1},
    "padding at the end": {"downsample_padding": 0},
    "grey, by class": {"in_channels": 1, "out_channels": 1, "num_class_embeds": 5},
    "one level": {
        "block_out_channels": [32],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
    },
    **{
        f"{'cosines' if flip else 'sines'} first, shift {shift}": {
            "flip_sin_to_cos": flip,
            "freq_shift": shift,
        }
        for flip, shift in itertools.product((True, False), (0, 1))
    },
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_what_is_written_is_what_was_read(options):
    config = SMALL | options
    unet = unet2d_from_config(config)
    check_unet(unet, 16, 16)
    written = unet2d_to_config(unet, 16, config.get("in_channels", 3))
    assert config.items() <= json.loads(json.dumps(written)).items()
    assert unet2d_from_config(written) == unet


@pytest.mark.full
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_outputs_are_those_of_diffusers(options):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    network = perturbed(diffusers.UNet2DModel(**SMALL | options))
    config = dict(network.config)
    unet, tensors = unet2d_from_config(config), state_dict(network)
    params = unet_params_from_diffusers(tensors, unet)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 16, config["in_channels"])).astype(np.float32)
    t, label = np.array([1, 731], np.int32), np.array([3, 0], np.int32)
    of_class = torch.tensor(label) if unet.num_classes else None
    with torch.no_grad():
        theirs = network(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), class_labels=of_class
        ).sample.numpy()
    condition = Condition(label=label) if unet.num_classes else None
    ours = jax.jit(unet.apply)({"params": params}, x, t, condition)
    # float32 sums in another order: relative to the largest output
    limit = 1e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), rtol=0, atol=limit)

    back = unet_params_to_diffusers(params, unet)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    again = diffusers.UNet2DModel.from_config(unet2d_to_config(unet, 16, config["in_channels"]))
    again.load_state_dict({name: torch.tensor(value) for name, value in back.items()})
    with torch.no_grad():
        same = again.eval()(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), class_labels=of_class
        ).sample.numpy()
    np.testing.assert_array_equal(same, theirs)


TRAINED = ("as in the training script", "scale and shift, a norm in the middle", "8 groups")


@pytest.mark.full
@pytest.mark.parametrize("options", [CASES[name] for name in TRAINED], ids=TRAINED)
def test_gradients_of_the_loss_are_those_of_diffusers(options):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    network = perturbed(diffusers.UNet2DModel(**SMALL | options))
    unet = unet2d_from_config(dict(network.config))
    params = unet_params_from_diffusers(state_dict(network), unet)
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(2, 2, 16, 16, 3)).astype(np.float32)
    target = np.repeat(target, unet.out_channels // 3, axis=-1)
    t = np.array([1, 731], np.int32)

    def loss(params):
        return jnp.mean(jnp.square(unet.apply({"params": params}, x, t) - target))

    ours, gradient = jax.jit(jax.value_and_grad(loss))(params)
    output = network(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t)).sample
    theirs = (output - torch.tensor(target.transpose(0, 3, 1, 2))).square().mean()
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    of_theirs = {name: value.grad.numpy() for name, value in network.named_parameters()}
    # 0 but for rounding where softmax takes no notice: the biases of keys
    rounding = 1e-6 * max(np.abs(value).max() for value in of_theirs.values())
    jax.tree.map(
        # of every parameter, relative to its largest number
        lambda own, other: np.testing.assert_allclose(
            own, other, rtol=0, atol=1e-4 * np.abs(other).max() + rounding
        ),
        gradient,
        unet_params_from_diffusers(of_theirs, unet),
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"act_fn": "gelu"}, "act_fn = "),
        ({"center_input_sample": True}, "center_input_sample = true"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = "),
        ({"mid_block_scale_factor": 1.41}, r"mid_block_scale_factor = 1\.41"),
        ({"class_embed_type": "timestep"}, "class_embed_type = "),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow = 3"),
        ({"time_embedding_dim": 64}, "time_embedding_dim .* null or 128"),
        ({"attention_head_dim": 24}, "attention_head_dim .* a divisor of 32"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups .* null or 32"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"downsample_type": "fir"}, "downsample_type .* conv, resnet"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"freq_shift": 2}, "flip_sin_to_cos, freq_shift"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "down_block_types .* 3 of DownBlock2D"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "the same levels as on the way down"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"sample_size": None}, "sample_size .* a multiple of 4"),
        ({"sample_size": [16, 32]}, "sample_size .* a multiple of 4"),
        ({"sample_size": 18}, "sample_size .* a multiple of 4"),
        ({"sample_size": "16"}, "sample_size"),
        ({"block_out_channels": [32, -32, 32]}, "block_out_channels"),
        ({"norm_eps": "small"}, "norm_eps .* a number"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_option(options, said):
    with pytest.raises(UsageError, match="UNet2DModel") as refused:
        unet2d_from_config(SMALL | options)
    assert re.search(said, str(refused.value)), refused.value
    assert next(iter(options)) in str(refused.value)


def test_a_level_that_nothing_follows_is_not_resampled_whatever_its_type():
    types = {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["UNetResUpBlock2D", "UNetResAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    }
    assert unet2d_from_config(SMALL | types) == unet2d_from_config(SMALL)


def test_images_of_another_size_keep_attention_on_the_same_levels():
    unet = unet2d_from_config(SMALL | {"sample_size": [16, 32]}, size=32)
    assert (unet.resolution, unet.attn_resolutions) == (32, (16,))
    assert [attends for _, _, attends in unet.levels] == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"low_res_channels": 3}, "low_res_channels"),
        ({"ch_mult": (2, 2)}, "ch_mult"),
        ({"time_channels": 64}, "time_channels"),
        ({"resampling": "pool"}, "resampling"),
        ({"mid_block": "unnormalised_attention"}, "mid_block"),
        ({"num_heads": 4, "num_heads_up": 2}, "num_heads_up"),
        ({"num_heads": 4, "attn_resolutions": (16, 8)}, "num_heads is 4 on levels"),
        ({"attn_resolutions": (16, 8), "ch_mult": (1, 2, 2), "block_down": (0,)}, "block_down"),
    ],
)
def test_what_diffusers_lacks_is_refused_by_the_name_of_the_field(fields, name):
    unet = UNet(
        **{"resolution": 16, "ch": 32, "ch_mult": (1, 2), "attn_resolutions": (8,)} | fields
    )
    check_unet(unet, 16, 16)
    with pytest.raises(UsageError, match=f"^{name}.*diffusers"):
        unet2d_to_config(unet, 16, 3)


def test_a_null_class_is_one_of_their_classes():
    unet = UNet(num_classes=10)
    assert unet2d_to_config(unet, 32, 3)["num_class_embeds"] == 11
    assert unet2d_to_config(unet.clone(null_class=False), 32, 3)["num_class_embeds"] == 10
