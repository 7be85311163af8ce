"""What Python refuses in one sentence that a command refuses too, or could not be asked."""

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError

PROCESS = ddpm_jax.make_process(ddpm_jax.Chain(ddpm_jax.make_betas("linear", 10)))
MODEL = ddpm_jax.from_network(lambda x_t, time: 0 * x_t, PROCESS, (4, 4, 1))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3"])
def test_a_seed_is_a_whole_number_of_32_bits(seed):
    with pytest.raises(UsageError, match=r"seed is .*it must be a whole number in 0..4294967295"):
        MODEL.sample(1, seed=seed)


@pytest.mark.parametrize("n", [0, -1, 2.5, "4", 10**8])
def test_a_number_of_images_is_one(n):
    with pytest.raises(UsageError, match=r"n is .*it must be a whole number in 1..10000000"):
        MODEL.sample(n)


def test_a_seed_means_the_same_images_everywhere_or_nothing_is_drawn():
    with jax.enable_x64(True), pytest.raises(UsageError, match=r"JAX_ENABLE_X64 is True"):
        MODEL.sample(1, steps=2)
    with jax.enable_x64(True), pytest.raises(UsageError, match=r"JAX_ENABLE_X64 is True"):
        MODEL.bits_per_dim(np.zeros((1, 4, 4, 1), np.uint8))
    with jax.enable_x64(True), pytest.raises(UsageError, match=r"JAX_ENABLE_X64 is True"):
        ddpm_jax.train("digits", workdir="nowhere")


@pytest.mark.parametrize("callbacks", [3, [3], [ddpm_jax.Callback], print])
def test_a_callback_is_an_object_of_its_class(callbacks, tmp_path):
    with pytest.raises(UsageError, match=r"derived from ddpm_jax.Callback"):
        ddpm_jax.train("digits", workdir=tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "setting"), [("ode", "timestep_stride"), ("bound", "rtol")])
def test_a_likelihood_has_the_settings_of_its_method(method, setting):
    with pytest.raises(UsageError, match=f"The method '{method}' has no setting {setting}"):
        MODEL.bits_per_dim(np.zeros((1, 4, 4, 1), np.uint8), method, **{setting: 1})
