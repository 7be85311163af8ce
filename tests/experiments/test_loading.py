"""Reading a trained model."""

import subprocess
import sys

import pytest


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
