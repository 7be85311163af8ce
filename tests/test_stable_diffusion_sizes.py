"""Stable Diffusion at sizes whose latents have odd sides, and the sizes that are refused."""

import pathlib

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.sizes import at_size
from ddpm_jax.interop.diffusers_text_unet import text_unet_params_from_diffusers
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_from_config
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.layers import Upsample

SD1 = pathlib.Path(__file__).parent / "goldens" / "sd" / "sd1"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(6, 10), (5, 10), (6, 9), (5, 9)])
def test_upsampling_to_an_odd_size_is_a_convolution_of_the_cropped_image(size):
    """Nearest-neighbour interpolation to 2n - 1 pixels repeats all but the last twice."""
    x, height, width = normal(2, 3, 5, 32), *size
    layer = Upsample()
    params = layer.init(jax.random.key(0), x)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 5 // width
    repeated = np.pad(x[:, rows][:, :, columns], ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(params["params"]["kernel"])
    wanted = sum(
        repeated[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    np.testing.assert_allclose(layer.apply(params, x, size), wanted, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("shape", [(5, 7), (9, 4)])
def test_a_network_of_odd_sides_is_that_of_diffusers(shape):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(SD1 / "unet").eval()
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    unet = text_unet_from_config(dict(theirs.config))
    params = text_unet_params_from_diffusers(tensors, unet)
    x, context = normal(2, *shape, 4), normal(2, 5, theirs.config.cross_attention_dim, seed=1)
    t = np.float32([3, 700])
    with torch.no_grad():
        out = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(context))
    ours = jax.jit(unet.apply)({"params": params}, x, t, Condition(context=context))
    np.testing.assert_allclose(ours, out.sample.permute(0, 2, 3, 1), atol=1e-5 * 3)


@pytest.mark.full
def test_the_first_stages_factor_is_all_that_a_size_must_have():
    """It is 4 here and 8 in the released models."""
    model = ddpm_jax.load(SD1).trained.model
    factor = model.codec.first_stage.model.network.factor
    assert at_size(model, 9 * factor, 5 * factor).shape[:2] == (9, 5)
    with pytest.raises(UsageError, match=f"height is {9 * factor + 1}: give a multiple of"):
        at_size(model, 9 * factor + 1, 5 * factor)


@pytest.mark.slow
def test_an_image_decoded_in_tiles_is_of_the_same_latents():
    model = ddpm_jax.load(SD1)
    factor = model.trained.model.codec.first_stage.model.network.factor
    settings = {"prompt": "a dog", "steps": 2, "guidance": 1, "seed": 3, "trajectory": True}
    settings |= {"height": 12 * factor, "width": 8 * factor}
    whole, tiled = model.sample(**settings), model.sample(**settings, tile=8 * factor)
    np.testing.assert_array_equal(tiled.x_0, whole.x_0)
    above = at_size(model.trained.model, 8 * factor, 8 * factor)
    alone = above.decode(model.trained.weights, whole.x_0[-1][:, :8])
    # the second tile begins at row 4
    np.testing.assert_array_equal(tiled.images[:, : 4 * factor], alone[:, : 4 * factor])
    assert np.any(tiled.images != whole.images)
    for tile in (8 * factor + 1, factor):
        with pytest.raises(UsageError, match=rf"tile is {tile}: give a multiple of {factor}"):
            model.sample(**settings, tile=tile)
