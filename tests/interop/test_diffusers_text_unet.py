"""The U-Net with cross-attention against diffusers' `UNet2DConditionModel`, random weights.

Each case is a config of theirs, so the meaning of its options is tested with the numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop.diffusers_text_unet import (
    text_unet_params_from_diffusers,
    text_unet_params_to_diffusers,
)
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_from_config, text_unet_to_config
from ddpm_jax.models.condition import Condition

from .conftest import perturbed, state_dict

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed: pip install -e '.[parity]'"
)

SMALL = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
ALL_LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
OPTIONS = {
    "defaults": {},
    "heads and depth of each level": {
        **ALL_LEVELS,
        "attention_head_dim": [2, 8],
        "transformer_layers_per_block": [1, 2],
        "only_cross_attention": [False, True],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "only cross-attention": {"only_cross_attention": True, "num_class_embeds": 7},
    "9 channels in, one residual block in the middle": {
        "in_channels": 9,
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": [2, 2],
        "cross_attention_dim": [24, 24],
    },
    "nothing in the middle, times of DDPM": {
        "mid_block_type": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
    },
    "the time scales and shifts": {
        "resnet_time_scale_shift": "scale_shift",
        "freq_shift": 1,
        "out_channels": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
}


def peer(options):
    """Return their network with random weights."""
    torch.manual_seed(0)
    return perturbed(diffusers.UNet2DConditionModel(**SMALL | options))


@pytest.mark.parametrize(
    "case",
    [
        name if name == "defaults" else pytest.param(name, marks=pytest.mark.full)
        for name in OPTIONS
    ],
)
def test_the_output_is_theirs_whatever_the_options(case):
    theirs = peer(OPTIONS[case])
    unet = text_unet_from_config(dict(theirs.config))
    tensors = state_dict(theirs)
    params = text_unet_params_from_diffusers(tensors, unet)
    written = text_unet_params_to_diffusers(params, unet)
    assert {name: value.shape for name, value in written.items()} == {
        name: value.shape for name, value in tensors.items()
    }

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 12, theirs.config.in_channels)).astype(np.float32)
    t, context = np.array([3.25, 700.0], np.float32), rng.normal(size=(2, 5, 24))
    classes = theirs.config.num_class_embeds
    label = np.array([0, classes - 1]) if classes else None
    with torch.no_grad():
        out = theirs(
            torch.tensor(x.transpose(0, 3, 1, 2)),
            torch.tensor(t),
            torch.tensor(context, dtype=torch.float32),
            class_labels=None if label is None else torch.tensor(label),
        ).sample
    channels = 4
    condition = Condition(
        label=None if label is None else jnp.asarray(label, jnp.int32),
        low_res=jnp.asarray(x[..., channels:]) if x.shape[3] > channels else None,
        context=jnp.asarray(context, jnp.float32),
    )
    ours = jax.jit(unet.apply)({"params": params}, x[..., :channels], t, condition)
    out = out.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, out, atol=1e-5 * max(1, np.abs(out).max()), rtol=0)


@pytest.mark.parametrize("case", OPTIONS)
def test_they_read_the_config_that_is_written(case):
    theirs = diffusers.UNet2DConditionModel(**SMALL | OPTIONS[case])
    unet = text_unet_from_config(dict(theirs.config))
    config = text_unet_to_config(unet, 8, theirs.config.in_channels)
    again = diffusers.UNet2DConditionModel.from_config(config)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert text_unet_from_config(config) == unet
