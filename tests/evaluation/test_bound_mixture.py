"""The bound of 8-bit images from a Gaussian mixture against their true bits.

It is computed by the loop that evaluate.py runs.

Given its component a pixel is independent of the others, so that the probability of an image is
known: the integral of its mixture over the bins, a product of differences of Φ for each component
(Φ of SciPy, float64). No model can spend fewer bits on average than -log2 of it. The images are
drawn with its help: a mixture, rounded to 8 bits.
"""

import math

import jax
import numpy as np
import pytest
import scipy.special

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.schedules import make_betas, make_schedule, spaced_timesteps
from ddpm_jax.evaluation.bound import Terms, make_bound, stream_terms
from ddpm_jax.evaluation.strata import make_strata

SHAPE = (2, 2, 1)
MEANS = np.random.default_rng(0).uniform(-0.6, 0.6, (3, *SHAPE))
# Standard deviations of 0.1 to 0.14, 13 to 18 levels: bins are narrow in comparison, and no pixel
# comes to 0 or 255.
IMAGES = mixtures.make_mixture([0.2, 0.5, 0.3], MEANS, [0.01, 0.02, 0.015])
COUNT = 4000


def eight_bit(count, seed):
    x = np.asarray(mixtures.sample(IMAGES, jax.random.split(jax.random.key(seed), count)))
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def true_bits(images, mixture=IMAGES):
    """-log2 P(image) / D in float64 [N]; the outer bins reach to infinity, as in the decoder."""
    logs = []
    for weight, mean, variance in zip(
        *(np.asarray(field, np.float64) for field in mixture), strict=True
    ):
        lower, upper = ((images + shift) / 127.5 - 1 for shift in (-0.5, 0.5))
        lower, upper = np.where(images == 0, -np.inf, lower), np.where(images == 255, np.inf, upper)
        low, high = ((edge - mean) / math.sqrt(variance) for edge in (lower, upper))
        # Mirrored into the lower tail, where a difference keeps its digits.
        bins = scipy.special.ndtr(np.where(low > 0, -low, high)) - scipy.special.ndtr(
            np.where(low > 0, -high, low)
        )
        logs.append(math.log(weight) + np.log(bins).sum(axis=(1, 2, 3)))
    return -scipy.special.logsumexp(logs, axis=0) / (images[0].size * math.log(2))


def make_chain(steps):
    """Return `steps` levels of one chain, from noise of half a bin to N(0, I) up to 1e-4."""
    betas = make_betas("linear", 300, beta_start=2e-5, beta_end=0.07)
    return make_schedule(betas, timesteps=spaced_timesteps(300, steps))


@pytest.fixture(scope="module")
def images():
    return eight_bit(COUNT, seed=0)


def bound_bits(images, steps, variance):
    """L_T + Σ L_t + L_0 of each image: float64 [N]."""
    chain = make_chain(steps)
    bound = make_bound(
        lambda mixture: mixtures.exact_denoiser(mixture, chain, variance=variance),
        chain,
        make_strata(steps),
    )
    source = ArraySource(images, np.zeros(len(images), np.int32), 0, "test")
    stream = stream_terms(
        bound, IMAGES, source, seed=0, num_images=len(images), draws=1, batch_size=COUNT
    )
    terms = Terms(*(np.concatenate(parts) for parts in zip(*stream, strict=True)))
    return terms.bits.sum(axis=(1, 2), dtype=np.float64) + terms.prior


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variance", "steps", "loosest", "tightest"),
    [("fixed_large", (10, 30, 100, 300), 1.5, 0.12), ("moment_matched", (10, 30), 0.6, 0.15)],
)
def test_the_bound_is_above_the_true_bits_at_every_number_of_steps_and_tightens(
    images, variance, steps, loosest, tightest
):
    """In float32, by evaluate.py's own loop.

    Measured: 1.27, 0.59, 0.21, 0.067 above; 0.42 and 0.095; each ± 0.01.

    A bin of twice the width, or the terms of the last steps left out, would not stay between the
    two limits.
    """
    truth = true_bits(images)
    excess = np.stack([bound_bits(images, count, variance) - truth for count in steps])
    error = excess.std(axis=1, ddof=1) / math.sqrt(COUNT)  # one ε at each t for each image
    mean = excess.mean(axis=1)
    assert error.max() < 0.02
    assert np.all(mean > 4 * error)
    assert mean[0] < loosest
    assert mean[-1] < tightest
    step_error = np.diff(excess, axis=0).std(axis=1, ddof=1) / math.sqrt(COUNT)
    assert np.all(-np.diff(mean) > 4 * step_error)


@pytest.mark.full
def test_the_true_bits_are_those_of_the_images(images):
    """The levels of the first pixel are distributed as its mixture.

    Chi-square over 96 of them.
    """
    pixel = IMAGES._replace(means=IMAGES.means[:, :1, :1])
    levels = 2 ** -true_bits(np.arange(256).reshape(256, 1, 1, 1), pixel)
    assert levels.sum() == pytest.approx(1, abs=1e-6)  # the weights are float32
    expected = COUNT * levels
    common = expected > 10
    observed = np.bincount(images[:, 0, 0, 0], minlength=256)
    statistic = np.sum((observed - expected)[common] ** 2 / expected[common])
    assert scipy.special.chdtrc(np.count_nonzero(common), statistic) > 1e-3
