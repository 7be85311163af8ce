"""The U-Net against the original TensorFlow graph."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.interop.original import unet_params_from_original
from ddpm_jax.models.unet import UNet


@pytest.mark.parametrize("remat", ["none", "products", "blocks"])
def test_output_is_that_of_the_original_graph(unet_goldens, remat):
    config = json.loads(str(unet_goldens["config"]))
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    assert (fields.pop("groups"), fields.pop("epsilon")) == (32, 1e-6)
    unet = UNet(**fields, remat=remat)
    variables = {
        name.removeprefix("params/"): v
        for name, v in unet_goldens.items()
        if name.startswith("params/")
    }
    params = unet_params_from_original(variables, unet)
    y = jax.jit(unet.apply)({"params": params}, unet_goldens["x"], unet_goldens["t"])
    # Float32 sums in another order, outputs up to 2.4: 3e-6 was seen.
    np.testing.assert_allclose(y, unet_goldens["y"], atol=1e-5)
