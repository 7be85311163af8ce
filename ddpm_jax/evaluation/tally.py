"""Sums of the terms of the bound over batches, and their means and standard errors.

A `Tally` grows by a batch at a time and is all that a stopped evaluation needs to resume;
`summarize` reads it. The terms are computed in `bound`, the rate-distortion curve in `progressive`;
files are in `results`. Everything is float64 on the host. `estimate` serves the likelihood by the
ODE too.

There are two errors. `standard_error` is over images: that of the mean of these N images as an
estimate for the distribution they come from, all randomness included; the estimates of the images
are unbiased and independent, so their standard deviation gives it for any stride.
`standard_error_draws` is that of the mean as an estimate for these very images, due to the seed. It
takes two draws or more.
"""

import math
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation.bound import Terms
from ddpm_jax.evaluation.strata import Strata


class Tally(NamedTuple):
    """Sums over N images.

    For one image at one t, c is the number of draws of this t, s the sum of their bits, m that of
    their mse.
    """

    total: np.ndarray  # float64 [N, draws]: L_T + the sum over t, estimated by each draw
    decoder: np.ndarray  # float64 [N, draws]: the term at t = 0
    prior: np.ndarray  # float64 [N]: L_T
    images: np.ndarray  # float64 [T]: images with c > 0
    c: np.ndarray  # float64 [T], as are those below: Σ c
    cc: np.ndarray
    s: np.ndarray
    ss: np.ndarray
    sc: np.ndarray
    m: np.ndarray
    mm: np.ndarray
    mc: np.ndarray

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.prior)


class Estimate(NamedTuple):
    """A mean over images and its standard errors (see the module).

    An error that takes more images or draws is NaN.
    """

    mean: float
    standard_error: float
    standard_error_draws: float


class Summary(NamedTuple):
    """The bound in bits/dim: total = prior + divergences + decoder.

    Tables are [T], NaN where no draw had this t.
    """

    num_images: int
    draws: int
    total: Estimate
    prior: float  # L_T
    divergences: Estimate  # Σ over t >= 1
    decoder: Estimate  # the term at t = 0, the paper's L_0
    visits: np.ndarray  # int64, the number of terms computed
    bits: np.ndarray  # mean over them
    bits_standard_error: np.ndarray  # over images
    mse: np.ndarray  # of the predicted x_0, on [-1, 1]
    mse_standard_error: np.ndarray
    # float64 [T]: the contribution of the terms at t to the mean total, 0 where there are none
    contributions: np.ndarray


def empty(num_timesteps: int, draws: int) -> Tally:
    """Return the tally of no images."""
    sums = (np.zeros(num_timesteps) for _ in range(len(Tally._fields) - 3))
    return Tally(np.zeros((0, draws)), np.zeros((0, draws)), np.zeros(0), *sums)


def add(tally: Tally, strata: Strata, terms: Terms) -> Tally:
    """Add the `Terms` of n images: t, bits and mse [n, draws, R], prior [n]; see `stream_terms`."""
    num_timesteps = len(tally.c)
    bits, mse, prior = (np.asarray(x, np.float64) for x in (terms.bits, terms.mse, terms.prior))
    c, s, m = (
        _by_timestep(terms.t, values, num_timesteps) for values in (np.ones_like(bits), bits, mse)
    )
    sums = (c > 0), c, c * c, s, s * s, s * c, m, m * m, m * c
    return Tally(
        np.concatenate([tally.total, bits @ strata.size.astype(np.float64) + prior[:, None]]),
        np.concatenate([tally.decoder, bits[..., 0]]),
        np.concatenate([tally.prior, prior]),
        *(old + new.sum(axis=0) for old, new in zip(tally[3:], sums, strict=True)),
    )


def merge(first: Tally, second: Tally) -> Tally:
    """Return the tally of both sets of images, in this order."""
    per_image = (np.concatenate(pair) for pair in zip(first[:3], second[:3], strict=True))
    return Tally(*per_image, *(a + b for a, b in zip(first[3:], second[3:], strict=True)))


def _by_timestep(t: np.ndarray, values: np.ndarray, num_timesteps: int) -> np.ndarray:
    """Sum `values` [n, draws, R] by image and t: [n, T]."""
    cell = np.arange(len(t))[:, None, None] * num_timesteps + t
    return np.bincount(cell.ravel(), values.ravel(), len(t) * num_timesteps).reshape(
        len(t), num_timesteps
    )


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean of bits/dim [N, draws], its error over images, and that over draws."""
    num_images, draws = values.shape
    per_image = values.mean(axis=1)
    error = per_image.std(ddof=1) / math.sqrt(num_images) if num_images > 1 else math.nan
    within = (
        math.sqrt(values.var(axis=1, ddof=1).sum() / draws) / num_images if draws > 1 else math.nan
    )
    return Estimate(float(per_image.mean()), float(error), float(within))


def summarize(tally: Tally, strata: Strata) -> Summary:
    """Return means and standard errors of a tally of at least one image."""
    draws = tally.total.shape[1]
    bits, bits_error = _ratio(tally, tally.s, tally.ss, tally.sc)
    mse, mse_error = _ratio(tally, tally.m, tally.mm, tally.mc)
    divergences = tally.total - tally.decoder - tally.prior[:, None]
    return Summary(
        num_images=tally.num_images,
        draws=draws,
        total=estimate(tally.total),
        prior=float(tally.prior.mean()),
        divergences=estimate(divergences),
        decoder=estimate(tally.decoder),
        visits=tally.c.astype(np.int64),
        bits=bits,
        bits_standard_error=bits_error,
        mse=mse,
        mse_standard_error=mse_error,
        contributions=strata.weights() * tally.s / (tally.num_images * draws),
    )


def _ratio(
    tally: Tally, s: np.ndarray, ss: np.ndarray, sc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean per visit Σs / Σc and its standard error over images.

    The draws of one image are not independent samples of images.

    The linearised variance of a ratio, Σ (s - mean c)² / (Σ c)² with the correction n / (n - 1)
    (Cochran 1977, Sampling Techniques, section 6.4); at one visit an image it is the standard error
    of a mean.
    """
    n = tally.images
    with np.errstate(divide="ignore", invalid="ignore"):  # a t without a draw is NaN
        mean = s / tally.c
        squares = np.maximum(ss - 2 * mean * sc + mean**2 * tally.cc, 0.0)
        error = np.sqrt(squares * n / (n - 1)) / tally.c
    return mean, np.where(n > 1, error, np.nan)
