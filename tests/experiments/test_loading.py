"""Reading a trained model."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import ddpm_jax
from ddpm_jax.experiments.run_settings import frozen_first_stage

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.mark.full
def test_loading_a_checkpoint_needs_nothing_of_what_trains_it():
    """Neither objective nor optimiser; what the network is conditioned on is the model's."""
    program = (
        "import sys, ddpm_jax.experiments.loading;"
        "print(*(m for m in sys.modules if m.startswith(('ddpm_jax.training.', 'optax'))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["ddpm_jax.training.conditioning"]


def test_the_vae_of_a_directory_normalises_in_the_groups_it_says(tmp_path):
    directory = tmp_path / "sd"
    shutil.copytree(GOLDENS / "sd" / "sd2", directory)
    path = directory / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_num_groups": 16}))
    vae = frozen_first_stage(ddpm_jax.load(directory).trained.model).model.network
    assert vae.norm_groups == 16
