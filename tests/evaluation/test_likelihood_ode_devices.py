"""The likelihood by the ODE on three devices is that on one.

As a program, the file computes and writes it.
"""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.diffusion import flow as flows
from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.evaluation import likelihood_ode as ode
from ddpm_jax.evaluation import ode_bits

ROOT = pathlib.Path(__file__).parents[2]


def bits(done=0):
    """Return the bits of five images in batches of two.

    One device is given 2, 2 and 1 of them, three devices 3 and 2.
    """
    rng = np.random.default_rng(0)
    data = mixtures.make_mixture([0.4, 0.6], rng.uniform(-0.7, 0.7, (2, 2, 2, 1)), [0.05, 0.02])
    source = ArraySource(
        rng.integers(0, 256, (5, 2, 2, 1), np.uint8), np.zeros(5, np.int32), 0, "drawn"
    )
    continuous = flows.make_continuous(make_schedule(make_betas("cosine", 1000)))
    evaluate = ode.make_bits_per_dim(
        lambda data: flows.mixture_eps(data, continuous), continuous, num_draws=2
    )
    found = list(
        ode_bits.stream_bits(evaluate, data, source, seed=3, num_images=5, batch_size=2, done=done)
    )
    return np.concatenate([part.draws for part in found]), [part.num_images for part in found]


@pytest.mark.slow
def test_three_devices_find_what_one_finds(tmp_path):
    here, batches = bits()
    assert (here.shape, batches) == ((5, 2), [2, 2, 1])
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, __file__, str(tmp_path / "three.npz")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = np.load(tmp_path / "three.npz")
    assert there["batches"].tolist() == [3, 2]
    # Rounding, other in a program for another batch, may tip an accepted step, at a tolerance of
    # 1e-5.
    np.testing.assert_allclose(there["bits"], here, atol=5e-4)
    assert np.abs(here[:, 0] - here[:, 1]).min() > 5e-4  # different draws differ by more


@pytest.mark.full
def test_what_is_done_is_left_out_and_the_rest_is_the_same():
    whole, _ = bits()
    rest, batches = bits(done=3)
    assert batches == [1, 1]
    np.testing.assert_array_equal(rest, whole[3:])


if __name__ == "__main__":
    assert jax.local_device_count() == 3
    found, batches = bits()
    np.savez(sys.argv[1], bits=found, batches=batches)
