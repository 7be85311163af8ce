"""DDIM inversion against SciPy's solution of the flow, and the order of a round trip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.inversion import invert, reconstruct
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.spacing import space

WEIGHTS, MEANS, VARIANCES = (
    np.array([0.4, 0.6]),
    np.array([[-0.8, 0.3], [0.6, -0.2]]),
    np.array([0.15, 0.3]),
)
CHAIN = Chain(make_betas("linear", 1000))
# A chain whose first level is all but clean, σ = 0.001, so that the step from clean data is no part
# of the error.
FINE = Chain(make_betas("linear", 1000, beta_start=1e-6, beta_end=0.012))
PICTURES = np.array([[0.2, -0.4], [-0.7, 0.9], [1.0, 0.0], [-0.1, 0.1]])


def make_denoiser(chain, times, dtype=np.float64):
    data = make_mixture(WEIGHTS, MEANS, VARIANCES, dtype=dtype)
    return exact_denoiser(data, chain.at(times, dtype=dtype), variance="fixed_small")


def round_trip(chain, steps, corrections=0, dtype=np.float64):
    times = space(chain, "logsnr", steps)
    with jax.enable_x64(dtype == np.float64):
        denoiser = make_denoiser(chain, times, dtype)
        run = jax.jit(
            lambda x_0: reconstruct(
                denoiser, chain, times, x_0, corrections=corrections, dtype=dtype
            )
        )
        return jax.tree.map(np.asarray, run(jnp.asarray(PICTURES, dtype)))


def flow_upwards(sigma):
    """Return x̄ at σ of the exact flow dx̄/dσ = ε that starts at the pictures, where σ = 0.

    By NumPy and SciPy alone.
    """

    def eps(sigma, x_bar):
        blurred = VARIANCES + sigma**2
        away = x_bar.reshape(-1, 1, 2) - MEANS
        joint = WEIGHTS / blurred * np.exp(-(away**2).sum(-1) / (2 * blurred))
        share = joint / joint.sum(axis=1, keepdims=True)
        return sigma * np.sum((share / blurred)[..., None] * away, axis=1).ravel()

    return (
        solve_ivp(eps, (0, sigma), PICTURES.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
        .y[:, -1]
        .reshape(-1, 2)
    )


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_a_round_trip_closes_at_first_order():
    steps = [40, 80, 160, 320]
    errors = [np.sqrt(np.mean(round_trip(FINE, n).rmse ** 2)) for n in steps]
    assert slope(steps, errors) == pytest.approx(-1, abs=0.15)
    assert errors[-1] < 0.03


@pytest.mark.full
@pytest.mark.parametrize("corrections", [0, 1])
def test_the_latent_is_that_of_the_exact_flow_at_first_order(corrections):
    sigma = np.exp(FINE.log_sigmas[-1])
    exact = flow_upwards(sigma) / np.sqrt(1 + sigma**2)
    steps = [40, 80, 160, 320]
    errors = [np.abs(round_trip(FINE, n, corrections).x_T - exact).max() for n in steps]
    assert slope(steps, errors) == pytest.approx(-1, abs=0.15)


@pytest.mark.full
def test_each_correction_shrinks_the_error_of_the_round_trip_by_a_factor():
    """20 steps of the usual chain, in float64.

    The iteration for x' converges and DDIM then leads back exactly.

    Measured with 0, 2, 4, 8, 16 corrections: 0.15, 0.012, 0.0012, 1.8e-5, 6e-9.
    """
    errors = np.array(
        [round_trip(CHAIN, 20, corrections).rmse.max() for corrections in (0, 2, 4, 8, 16)]
    )
    assert np.all(errors[1:] < 0.2 * errors[:-1])
    assert errors[-1] < 1e-7


def test_the_report_is_of_the_picture_and_its_reconstruction():
    found = round_trip(CHAIN, 20, dtype=np.float32)
    np.testing.assert_allclose(
        found.rmse, np.sqrt(np.mean((found.x_0 - PICTURES) ** 2, axis=1)), rtol=1e-5
    )
    assert found.rmse.shape == (4,)
    assert found.x_T.dtype == np.float32


def test_the_latent_of_a_sample_is_the_noise_that_it_was_made_from():
    """Inversion undoes DDIM, up to the error of 500 steps each way."""
    times = space(FINE, "logsnr", 500)
    keys = image_keys(jax.random.key(0), jnp.arange(16))
    with jax.enable_x64(True):
        denoiser = make_denoiser(FINE, times)
        x_T = initial_noise(keys, (2,)).astype(np.float64)
        x_0 = sample(denoiser, ddim(FINE, times, dtype=np.float64), x_T, keys).x_0
        again = sample(denoiser, invert(FINE, times, dtype=np.float64), x_0, keys).x_0
        error = np.abs(np.asarray(again - x_T))
    assert error.max() < 0.1
    assert np.median(error) < 0.02


def test_nothing_is_drawn_and_no_image_depends_on_another():
    times = space(CHAIN, "linspace", 10)
    denoiser = make_denoiser(CHAIN, times, np.float32)

    def latents(pictures, seed):
        keys = image_keys(jax.random.key(seed), jnp.arange(len(pictures)))
        return np.asarray(
            sample(denoiser, invert(CHAIN, times, corrections=1), jnp.float32(pictures), keys).x_0
        )

    np.testing.assert_array_equal(latents(PICTURES, 0), latents(PICTURES, 1))
    # Sums over components may be taken in another order in another batch: rounding.
    np.testing.assert_allclose(
        latents(PICTURES[2:3], 0), latents(PICTURES, 0)[2:3], rtol=1e-5, atol=1e-6
    )


@pytest.mark.full
@pytest.mark.parametrize("corrections", [0, 2])
def test_it_asks_as_often_as_it_says_and_walks_up_to_the_last_level(corrections):
    times = space(CHAIN, "linspace", 4)
    sampler = invert(CHAIN, times, corrections=corrections)
    exact, evaluated = make_denoiser(CHAIN, times, np.float32), []

    def predict(x_t, t):
        evaluated.append(int(t[0]))
        return exact(x_t, t)

    denoiser = from_function(sampler.schedule, predict)
    with jax.disable_jit():
        sample(
            denoiser, sampler, jnp.float32(PICTURES), image_keys(jax.random.key(0), jnp.arange(4))
        )
    assert len(evaluated) == sampler.evaluations
    below = [0, 0, 1, 2]
    assert evaluated == [level for i in range(4) for level in [below[i]] + [i] * corrections]


def test_a_chain_that_destroys_the_signal_is_inverted_to_pure_noise():
    """ᾱ = 0 at the end: the last step keeps nothing of x but its noise."""
    chain = Chain(make_betas("jsd", 50))
    times = space(chain, "linspace", 50)
    x_T = sample(
        make_denoiser(chain, times, np.float32),
        invert(chain, times),
        jnp.float32(PICTURES),
        image_keys(jax.random.key(0), jnp.arange(4)),
    ).x_0
    assert np.isfinite(x_T).all()
    assert np.ptp(x_T, axis=0).min() > 0.1


def test_a_negative_number_of_corrections_is_refused():
    with pytest.raises(UsageError, match="corrections is -1: choose 0"):
        invert(CHAIN, space(CHAIN, "linspace", 4), corrections=-1)
