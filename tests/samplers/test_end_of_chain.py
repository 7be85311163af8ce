"""The error of starting from N(0, I) where a chain ends before x_T is noise.

The data is one Gaussian.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.randomness import image_keys
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

MEAN, STD = 0.8, 0.1


def draw_samples(betas):
    """Return mean and standard deviation of DDIM's samples with an exact denoiser.

    Every step is walked, and nothing is random.

    E[x_0|x_t] of a Gaussian is affine in x_t, and so is all of DDIM in x_T: two points say what it
    is.
    """
    chain = Chain(betas)
    sampler = make_sampler("ddim", chain, steps=len(betas))
    denoiser = exact_denoiser(
        make_mixture([1.0], [[MEAN]], [STD**2]), sampler.schedule, variance="fixed_small"
    )
    x_T = np.array([[0.0], [1.0]], np.float32)
    at_0, at_1 = np.ravel(
        sample(denoiser, sampler, x_T, image_keys(jax.random.key(0), jnp.arange(2))).x_0
    )
    return at_0, at_1 - at_0


def test_100_steps_of_betas_meant_for_1000_sample_another_gaussian():
    """The flow leads from N(0, 1), not q(x_T), to m (1 - s √ᾱ/σ) and s/σ, σ² = ᾱ s² + 1 - ᾱ.

    These are 0.740 and 0.125.
    """
    betas = make_betas("linear", 100)
    alphas_bar = np.prod(1 - betas)
    scale = np.sqrt(alphas_bar * STD**2 + 1 - alphas_bar)
    mean, std = draw_samples(betas)
    assert (mean, std) == (pytest.approx(0.742, abs=5e-4), pytest.approx(0.121, abs=1.5e-3))
    # DDIM's own error of first order is what is left
    assert mean == pytest.approx(MEAN * (1 - STD * np.sqrt(alphas_bar) / scale), abs=0.003)
    assert std == pytest.approx(STD / scale, abs=0.006)


@pytest.mark.full
@pytest.mark.parametrize("num_timesteps", [10, 100, 250, 1000])
def test_scaled_betas_sample_the_data_at_any_number_of_steps(num_timesteps):
    mean, std = draw_samples(make_betas("linear", num_timesteps, scale_betas=True))
    assert mean == pytest.approx(MEAN, abs=6e-4)  # m s √ᾱ_T is 5e-4
    # DDIM narrows what it samples by an error that shrinks with the steps: 0.088 at 100 is that of
    # so few of them
    assert STD * (1 - 1.4 * num_timesteps**-0.5) < std < STD
