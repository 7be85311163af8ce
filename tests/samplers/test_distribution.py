"""Samplers that add noise draw from the data, by Kolmogorov-Smirnov tests of shown power.

The statistic D is the largest distance between the empirical and the exact distribution function. n
samples of the right distribution give D > 1.95 / √n once in a thousand times. A chain of finitely
many steps has a bias of its own, so it is tested with many of them; and the same chain with noise
of the wrong size must be found out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from ddpm_jax.diffusion.mixture import make_mixture
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.registry import make_sampler

COUNT = 20_000
CRITICAL = 1.95 / np.sqrt(COUNT)


def distance(samples, weights, means, widths):
    """D of samples [n] from a mixture on the line."""
    x = np.sort(np.asarray(samples, np.float64))
    exact = np.sum(weights * ndtr((x[:, None] - means) / widths), axis=1)
    rank = np.arange(len(x)) / len(x)
    return np.max(np.maximum(exact - rank, rank + 1 / len(x) - exact))


def distances(oracle, samples):
    """D of both coordinates, and of one in which the two clusters lie apart."""
    widths = np.sqrt(oracle.variances)
    apart = (oracle.means[1] - oracle.means[0]) / np.linalg.norm(oracle.means[1] - oracle.means[0])
    return [
        distance(samples @ direction, oracle.weights, oracle.means @ direction, widths)
        for direction in (np.array([1.0, 0.0]), np.array([0.0, 1.0]), apart)
    ]


def samples(oracle, name, steps, options, **changed):
    """[COUNT, 2]; `changed` is what is wrong: rows -> rows, or another denoiser."""
    sampler = make_sampler(name, oracle.chain, steps=steps, spacing="karras", options=options)
    spoil = changed.pop("spoil", lambda rows: rows)
    return oracle.run(sampler, *oracle.start(COUNT), rows=spoil(sampler.rows), **changed).x_0


def times_noise(factor):
    return lambda rows: rows._replace(
        weights=rows.weights._replace(z=np.float32(factor) * rows.weights.z)
    )


def louder(denoiser):
    """Another variance of the reverse step: noise larger by a tenth."""
    return denoiser.then(
        lambda schedule, p, x_t, t: p._replace(log_variance=p.log_variance + np.log(1.1**2))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [  # first order, and so more steps
        ("ddim", 200, {"eta": 1.0}),
        ("ddim", 100, {"eta": 0.5}),
        ("euler_ancestral", 200, {}),
        ("edm", 100, {"s_churn": 40.0}),
        ("dpmpp_2m_sde", 100, {}),
        ("dpmpp_2m_sde", 100, {"eta": 0.5}),
        ("dpmpp_3m_sde", 100, {}),
    ],
)
def test_it_draws_from_the_data_and_with_a_tenth_more_or_less_noise_it_does_not(
    oracle, name, steps, options
):
    assert max(distances(oracle, samples(oracle, name, steps, options))) < CRITICAL
    for factor in (0.9, 1.1):
        assert (
            max(distances(oracle, samples(oracle, name, steps, options, spoil=times_noise(factor))))
            > CRITICAL
        )


@pytest.mark.full
def test_ancestral_draws_from_the_data_and_with_a_tenth_more_noise_it_does_not(oracle):
    assert max(distances(oracle, samples(oracle, "ancestral", 200, {}))) < CRITICAL
    assert max(distances(oracle, samples(oracle, "ancestral", 200, {}, wrap=louder))) > CRITICAL


@pytest.mark.full
def test_noise_and_a_second_prediction_need_half_the_steps(oracle):
    """At 50 steps DDIM with η = 1 is found out, SDE-DPM-Solver++ is not."""
    assert max(distances(oracle, samples(oracle, "ddim", 50, {"eta": 1.0}))) > CRITICAL
    assert max(distances(oracle, samples(oracle, "dpmpp_2m_sde", 50, {}))) < CRITICAL


@pytest.mark.full
def test_the_corrector_draws_from_each_level_and_repairs_what_few_steps_did(oracle):
    """In 64 dimensions, where the norms of noise and score fluctuate little.

    The size of a Langevin step follows from these norms.

    D of the pixels, and of the sum in which the clusters lie 3.2 widths apart.
    """
    count, steps = 2000, 50
    means = np.array([-0.1, 0.1])
    mixture = make_mixture(oracle.weights, np.tile(means[:, None], 64), oracle.variances)
    keys = image_keys(jax.random.key(0), jnp.arange(count))
    x_T, widths = initial_noise(keys, (64,)), np.sqrt(oracle.variances)

    def found(corrector_steps, noise=1.0):
        options = {"corrector_steps": corrector_steps}
        sampler = make_sampler(
            "predictor_corrector", oracle.chain, steps=steps, spacing="karras", options=options
        )
        rows = sampler.rows._replace(noise=np.float32(noise) * sampler.rows.noise)
        x = np.asarray(oracle.run(sampler, x_T, keys, rows=rows, mixture=mixture).x_0, np.float64)
        pixels = distance(x.ravel(), oracle.weights, means, widths)
        return pixels, distance(x.sum(axis=1) / 8, oracle.weights, 8 * means, widths)

    corrected, plain, wrong = found(1), found(0), found(1, noise=1.2)
    assert corrected[1] < 1.95 / np.sqrt(count) < min(plain[1], wrong[1])
    assert corrected[0] < 0.5 * min(plain[0], wrong[0])
