"""The U-Net against diffusers' `UNet2DModel` with the same random weights."""

import math

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import unet_params_from_diffusers, unet_params_to_diffusers
from ddpm_jax.interop.renaming import unet_shapes
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.unet import UNet

from .conftest import perturbed, state_dict

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed: pip install -e '.[parity]'"
)

UNET = UNet(
    resolution=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0
)


TIME_EMBEDDINGS = {
    "sin_cos": {"flip_sin_to_cos": False, "freq_shift": 1},
    "cos_sin": {"flip_sin_to_cos": True, "freq_shift": 0},
}
IMPROVED_DDPM = {
    "num_heads": 4,
    "scale_shift_norm": True,
    "time_embedding": "cos_sin",
    "downsample_padding": "both",
    "out_channels": 6,
}


def peer(unet, in_channels=3):
    """Return their network with our fields and random weights.

    By default it has the settings of the google/ddpm-* checkpoints.
    """
    attends = [unet.resolution // 2**i in unet.attn_resolutions for i in range(len(unet.ch_mult))]
    network = diffusers.UNet2DModel(
        sample_size=unet.resolution,
        in_channels=in_channels,
        out_channels=unet.out_channels,
        layers_per_block=unet.num_res_blocks,
        block_out_channels=tuple(unet.ch * mult for mult in unet.ch_mult),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None
        if unet.num_heads == 1
        else unet.ch * unet.ch_mult[-1] // unet.num_heads,
        resnet_time_scale_shift="scale_shift" if unet.scale_shift_norm else "default",
        # or theirs has no normalisation in the middle's attention under scale_shift
        attn_norm_num_groups=32,
        downsample_padding={"end": 0, "both": 1}[unet.downsample_padding],
        norm_eps=unet.norm_eps,
        num_class_embeds=unet.num_classes + 1 if unet.num_classes else None,
        **TIME_EMBEDDINGS[unet.time_embedding],
    )
    return perturbed(network)


@pytest.fixture(scope="module")
def weights():
    return state_dict(peer(UNET))


@pytest.mark.parametrize(
    ("fields", "channels", "height", "width"),
    [
        ({}, 3, 16, 16),
        ({"num_heads": 2, "scale_shift_norm": True, "out_channels": 2}, 1, 8, 24),
        # So large an epsilon that each normalisation shows whether it has it.
        (IMPROVED_DDPM | {"norm_eps": 0.1}, 3, 16, 16),
        ({"num_classes": 4, "scale_shift_norm": True}, 3, 16, 16),
    ],
)
def test_output_is_that_of_diffusers(fields, channels, height, width):
    unet = UNET.clone(**fields)
    network = peer(unet, channels)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    t = np.array([0, 731.25], np.float32)
    label = np.array([2, 4], np.int32) if unet.num_classes else None  # a class and the null class
    with torch.no_grad():
        of_class = None if label is None else torch.tensor(label)
        theirs = network(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), class_labels=of_class
        ).sample
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
    params = unet_params_from_diffusers(state_dict(network), unet)
    ours = jax.jit(unet.apply)(
        {"params": params}, x, t, None if label is None else Condition(label=label)
    )
    # Float32 sums in another order, some 30 layers deep: relative to the largest output.
    np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.abs(theirs).max())


def test_the_network_of_improved_ddpm_has_as_many_parameters_as_that_of_diffusers():
    fields = IMPROVED_DDPM | {
        "ch_mult": (1, 2, 2, 2),
        "num_res_blocks": 3,
        "attn_resolutions": (16, 8),
    }
    unet = UNet(resolution=32, **fields)
    theirs = sum(math.prod(parameter.shape) for parameter in peer(unet).parameters())
    assert sum(map(math.prod, unet_shapes(unet, in_channels=3).values())) == theirs == 52_546_438


def test_old_and_new_attention_names_are_the_same_weights(weights):
    new_to_old = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    old = {}
    for name, value in weights.items():
        for new_name, old_name in new_to_old.items():
            name = name.replace(new_name, old_name)
        old[name] = value
    assert set(old) != set(weights)
    jax.tree.map(
        np.testing.assert_array_equal,
        unet_params_from_diffusers(old, UNET),
        unet_params_from_diffusers(weights, UNET),
    )


def test_there_and_back_is_the_identity_and_diffusers_loads_it(weights):
    back = unet_params_to_diffusers(unet_params_from_diffusers(weights, UNET), UNET)
    assert set(back) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    peer(UNET).load_state_dict(
        {name: torch.tensor(value) for name, value in back.items()}, strict=True
    )


def test_missing_left_over_and_misshapen_tensors_are_named(weights):
    with pytest.raises(UsageError, match=r"lacks conv_out\.bias"):
        unet_params_from_diffusers({k: v for k, v in weights.items() if k != "conv_out.bias"}, UNET)
    with pytest.raises(UsageError, match=r"has, beyond the network's, class_embedding\.weight"):
        unet_params_from_diffusers({**weights, "class_embedding.weight": np.zeros((10, 128))}, UNET)
    with pytest.raises(
        UsageError, match=r"conv_in\.weight .* read here as \(3, 3, 3, 64\), .* \(3, 3, 3, 32\)"
    ):
        unet_params_from_diffusers({**weights, "conv_in.weight": np.zeros((64, 3, 3, 3))}, UNET)
    with pytest.raises(UsageError, match=r"lacks .*attentions.* give the U-Net the fields"):
        unet_params_from_diffusers(weights, UNET.clone(attn_resolutions=(8, 4)))
