"""Directories in diffusers' layout: what is read of them, and what each defect is called."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.autoencoder_config import autoencoder_from_config
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.diffusers_directory import SCHEDULERS, read_pipeline
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


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_vae_of_a_directory_decodes_as_in_diffusers(name):
    part = read_pipeline(SD / name).vae
    fields, scale = autoencoder_from_config(part.config)
    model, goldens = Autoencoder(**fields), np.load(SD / f"{name}_vae.npz")
    params = autoencoder_params_from_diffusers(part.tensors, model)
    latents = goldens["latents"].transpose(0, 2, 3, 1)
    images = model.apply({"params": params}, latents, method="decode")
    assert scale == 0.18215  # sd1 does not say so
    # float32 of another library is 1e-6 away, values are up to 2.4
    np.testing.assert_allclose(images, goldens["decoded"].transpose(0, 2, 3, 1), atol=1e-5)
    moments = model.apply(
        {"params": params}, goldens["image"].transpose(0, 2, 3, 1), method="encode"
    )
    mean, log_variance = np.split(np.asarray(moments).transpose(0, 3, 1, 2), 2, axis=1)
    np.testing.assert_allclose(mean, goldens["mean"], atol=1e-4)
    np.testing.assert_allclose(log_variance, goldens["logvar"], atol=1e-4)
