"""`python -m ddpm_jax.cli.import_first_stage`: weights as diffusers names them become a run that everything reads."""

import jax
import numpy as np
import pytest

from ddpm_jax.cli import config as configs
from ddpm_jax.cli.experiment import build
from ddpm_jax.cli.load import load_first_stage
from ddpm_jax.interop.first_stage import autoencoder_params_to_diffusers

FIELDS = {
    "objective": "first_stage",
    "data": {"name": "digits", "image_size": 8, "channels": 1},
    "model": {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.0},
}


@pytest.fixture
def files(tmp_path):
    """A config, and random weights of its network in an NPZ file; returns their arguments and the parameters."""
    model = build(configs.from_dict(FIELDS, source="a test")).model
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    np.savez(tmp_path / "vae.npz", **autoencoder_params_to_diffusers(params, model))
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {FIELDS}\n")
    return ["--config", tmp_path / "mine.py", "--weights", tmp_path / "vae.npz", "--out", tmp_path / "run"], params


def test_the_weights_come_out_as_they_went_in(invoke, refused, files, tmp_path):
    argv, params = files
    result = invoke("import_first_stage", *argv)
    assert result.code == 0, result.err
    assert f"--config.first_stage.ckpt={tmp_path / 'run'}" in result.out
    loaded = load_first_stage(tmp_path / "run")
    assert (loaded.step, loaded.weights) == (0, "ema")
    expected = {**params, "log_scale": np.float32(0.0)}  # which the file does not have
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    refused("import_first_stage", *argv, says=["holds a run already: name another directory"])


def test_what_cannot_be_read_is_refused(refused, files, tmp_path):
    argv, _ = files
    refused("import_first_stage", *argv[:4], says=["--out is missing"])
    refused("import_first_stage", *argv, "--config.model.ch=64", says=["64"])
    refused(
        "import_first_stage", *argv, "--config.model.num_res_blocks=2", says=["lacks decoder.up_blocks.1.resnets.2"]
    )
    refused("import_first_stage", *argv, "--weights", tmp_path / "none", says=["cannot be read from", "No such file"])
    diffusion = [*argv, "--config.objective=diffusion"]
    refused("import_first_stage", *diffusion, says=["is that of a diffusion model"])
    assert not (tmp_path / "run").exists()
