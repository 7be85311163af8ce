"""The bound over a set of images: a closed form, and errors that are what they say.

Gaussian data has an exact denoiser that is affine in x_t, so every term's mean over ε is known for
each image: exactly at t >= 1, by quadrature in one dimension at t = 0. That is the judge of the
estimates here.
"""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation import tally
from ddpm_jax.evaluation.batches import check_images
from ddpm_jax.evaluation.bound import (
    Terms,
    check_has_bound,
    gaussian_noise,
    make_bound,
    stream_terms,
)
from ddpm_jax.evaluation.strata import draw_timesteps, make_strata
from ddpm_jax.monitoring import results

ROOT = pathlib.Path(__file__).parents[2]
MU, SIGMA = 0.1, 0.25  # of the pixels, on [-1, 1]: no pixel in 3000 is clipped
T = 60
SHAPE = (4, 4, 1)
LEVELS = np.arange(256) / 127.5 - 1


def build_schedule(num_timesteps=T, dtype=np.float32):
    # End points that take 60 steps as far as 1000 with the published ones: L_T is about 1e-5.
    return make_schedule(
        make_betas("linear", num_timesteps, beta_start=1e-3, beta_end=0.35), dtype=dtype
    )


def exact_x_0(schedule, x_t, time):
    """E[x_0|x_t] for pixels N(MU, SIGMA²): linear in x_t (Bishop 2006, eq. 2.116).

    `time` is the 0-based t.
    """
    a = jnp.asarray(schedule.sqrt_alphas_bar)[time.astype(int)].reshape(-1, 1, 1, 1)
    noise = jnp.square(jnp.asarray(schedule.sqrt_one_minus_alphas_bar)[time.astype(int)]).reshape(
        -1, 1, 1, 1
    )
    return MU + a * SIGMA**2 / (a**2 * SIGMA**2 + noise) * (x_t - a * MU)


def make_denoiser(schedule):
    return lambda _: make_process(Chain(make_betas("linear", T)), "x_0", "fixed_small").denoiser(
        lambda x_t, time: exact_x_0(schedule, x_t, time), schedule, clip="none"
    )


def make_images(count, seed=0):
    pixels = np.random.default_rng(seed).normal(MU, SIGMA, (count, *SHAPE))
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)


def make_source(images):
    return ArraySource(images, np.zeros(len(images), np.int32), 0, "test")


def run(images, strata, *, seed=0, draws=1, batch_size=8, done=0):
    """The terms of all images as one `Terms`."""
    bound = make_bound(make_denoiser(build_schedule()), build_schedule(), strata)
    batches = stream_terms(
        bound,
        {},
        make_source(images),
        seed=seed,
        num_images=len(images),
        draws=draws,
        batch_size=batch_size,
        done=done,
    )
    return Terms(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


class Closed(NamedTuple):
    """Closed forms for each of the 256 grey levels, in float64.

    The mean over ε of the term at each t, bits [T, 256]; L_T [256].
    """

    bits: np.ndarray
    mse: np.ndarray
    prior: np.ndarray

    @classmethod
    def form(cls):
        # alphas_bar from the betas again, not from a table of the package.
        betas = make_betas("linear", T, beta_start=1e-3, beta_end=0.35)
        a_bar = np.cumprod(1 - betas)
        a_prev = np.append(1, a_bar[:-1])
        gain = np.sqrt(a_bar) * SIGMA**2 / (a_bar * SIGMA**2 + 1 - a_bar)  # of x_t in E[x_0|x_t]
        bias = (1 - gain * np.sqrt(a_bar))[:, None] * (LEVELS - MU)[None, :]  # x_0 - E[x̂_0]
        mse = bias**2 + (gain**2 * (1 - a_bar))[:, None]
        coef = np.sqrt(a_prev) * betas / (1 - a_bar)
        variance = betas * (1 - a_prev) / (1 - a_bar)
        variance[0] = variance[1]
        # the variances of q and p are one
        bits = (coef**2 / variance)[:, None] * mse / (2 * np.log(2))
        bits[0] = cls._decoder(a_bar[0], gain[0], variance[0])
        last = a_bar[-1]
        prior = 0.5 * (last * LEVELS**2 + (1 - last) - 1 - np.log(1 - last)) / np.log(2)
        return cls(bits, mse, prior)

    @staticmethod
    def _decoder(a_bar, gain, variance):
        """Return the decoder's term, by Gauss-Hermite quadrature over ε.

        Its log-probability is tested in diffusion/test_likelihood.py.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        x_t = np.sqrt(a_bar) * LEVELS[:, None] + np.sqrt(1 - a_bar) * nodes[None, :]
        mean = MU + gain * (x_t - np.sqrt(a_bar) * MU)
        x = np.broadcast_to(LEVELS[:, None], mean.shape).astype(np.float32)
        log_p = likelihood.discretized_gaussian_log_likelihood(
            x, mean.astype(np.float32), np.full_like(x, 0.5 * np.log(variance))
        )
        return -np.asarray(log_p, np.float64) @ (weights / weights.sum()) / np.log(2)

    def of(self, images):
        """Means over the pixels: (bits [N, T], mse [N, T], prior [N])."""
        pixels = images.reshape(len(images), -1)
        return (
            self.bits[:, pixels].mean(-1).T,
            self.mse[:, pixels].mean(-1).T,
            self.prior[pixels].mean(-1),
        )

    def of_distribution(self):
        """The mean total over the images that `make_images` draws from."""
        edges = np.concatenate([[-np.inf], (LEVELS[:-1] + LEVELS[1:]) / 2, [np.inf]])
        probability = np.diff(scipy.stats.norm.cdf(edges, MU, SIGMA))
        return (self.bits.sum(0) + self.prior) @ probability


@pytest.fixture(scope="module")
def closed():
    return Closed.form()


@pytest.mark.parametrize("num_timesteps", [2, 20, 1000, 4000])
@pytest.mark.parametrize("stride", [1, 2, 10, "T"])
def test_strata_are_all_timesteps_once(num_timesteps, stride):
    stride = num_timesteps if stride == "T" else min(stride, num_timesteps)
    strata = make_strata(num_timesteps, stride)
    every = np.concatenate(
        [np.arange(first, first + size) for first, size in zip(*strata, strict=True)]
    )
    np.testing.assert_array_equal(every, np.arange(num_timesteps))
    assert strata.size[0] == 1  # the decoder's term is always computed
    assert strata.size.max() <= stride
    np.testing.assert_array_equal(
        strata.weights(), [size for size in strata.size for _ in range(size)]
    )


def test_a_stride_of_ten_costs_about_a_tenth():
    assert len(make_strata(1000, 10).first) == 112
    assert len(make_strata(1000, 1).first) == 1000


def test_every_term_has_its_closed_form(closed):
    """256 draws of 4 images of 16 pixels.

    The mean over draws lies within 5 of its standard errors, at every t.
    """
    images = make_images(4)
    terms = run(images, make_strata(T), draws=256)
    bits, mse, prior = closed.of(images)
    for found, expected in ((terms.bits, bits), (terms.mse, mse)):
        error = found.std(axis=1, ddof=1) / np.sqrt(256)
        z = (found.mean(axis=1) - expected) / error
        assert np.abs(z).max() < 5
        assert 0.8 < z.std() < 1.2  # 240 of them: the errors are neither too large nor too small
        assert np.all(error < 0.1 * expected)  # so that the comparison has power
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-4)


def test_t_is_uniform_over_its_stratum():
    keys = jax.random.split(jax.random.key(0), 6000)
    for first, size in ((0, 1), (9, 2), (40, 6)):
        t = np.asarray(draw_timesteps(keys, 3, first, size))
        counts = np.bincount(t - first, minlength=size)
        assert len(counts) == size
        # 4 standard deviations
        assert np.abs(counts - 6000 / size).max() < 4 * np.sqrt(6000 / size)


def groups(terms, num_groups, images_per_group, draws_per_group, strata):
    """Summaries of disjoint sets of images or draws, each an evaluation of its own."""
    parts = [
        x.reshape(
            -1, images_per_group, x.shape[1] // draws_per_group, draws_per_group, *x.shape[2:]
        ).swapaxes(1, 2)
        for x in terms[:3]
    ]
    parts = [x.reshape(num_groups, images_per_group, draws_per_group, -1) for x in parts]
    priors = np.repeat(
        terms.prior.reshape(-1, images_per_group),
        num_groups * images_per_group // len(terms.prior),
        0,
    )
    empty = tally.empty(T, draws_per_group)
    return [
        tally.summarize(tally.add(empty, strata, Terms(*(x[g] for x in parts), priors[g])), strata)
        for g in range(num_groups)
    ]


def check_coverage(estimates, errors, truth):
    """100 estimates: their mean is the truth, and their errors say how far each lies from it."""
    estimates, errors = np.array(estimates), np.array(errors)
    assert abs(estimates.mean() - truth) < 4 * estimates.std(ddof=1) / np.sqrt(len(estimates))
    inside = np.mean(np.abs(estimates - truth) < 1.96 * errors)
    # 95 % less the tails of Student's t, ± 3 standard errors of a share of 100
    assert 0.88 <= inside <= 0.99
    # 7 % at one sigma
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(estimates.std(ddof=1), rel=0.25)


@pytest.mark.full
@pytest.mark.parametrize("stride", [1, 10, T])
def test_the_strided_estimate_is_unbiased_and_its_error_over_draws_is_right(stride, closed):
    """100 evaluations of 16 images with 4 draws each, against the sum in closed form."""
    images, strata = make_images(16), make_strata(T, stride)
    bits, _, prior = closed.of(images)
    found = groups(run(images, strata, draws=400, batch_size=16), 100, 16, 4, strata)
    truth = (bits.sum(axis=1) + prior).mean()
    check_coverage(
        [s.total.mean for s in found], [s.total.standard_error_draws for s in found], truth
    )
    rest = bits[:, 1:].sum(axis=1).mean()
    check_coverage(
        [s.divergences.mean for s in found],
        [s.divergences.standard_error_draws for s in found],
        rest,
    )


@pytest.mark.full
@pytest.mark.parametrize("stride", [1, 10])
def test_the_error_over_images_is_that_of_the_distribution_they_come_from(stride, closed):
    """100 sets of 16 images, one draw each, against the mean over all images there could be."""
    strata = make_strata(T, stride)
    found = groups(run(make_images(1600, seed=1), strata, batch_size=400), 100, 16, 1, strata)
    check_coverage(
        [s.total.mean for s in found],
        [s.total.standard_error for s in found],
        closed.of_distribution(),
    )
    assert np.isnan(
        found[0].total.standard_error_draws
    )  # one draw gives no estimate of its own error


@pytest.mark.full
def test_a_strided_term_is_the_one_of_the_full_sum():
    """To 2e-5: the late ones are differences of means of size 1, rounded to 6e-8."""
    images = make_images(5)
    full, strided = (run(images, make_strata(T, stride), draws=2) for stride in (1, 20))
    assert strided.t.shape[-1] < T / 3
    np.testing.assert_allclose(
        strided.bits, np.take_along_axis(full.bits, strided.t, -1), rtol=2e-5, atol=1e-7
    )
    assert len(np.unique(strided.t[:, :, -1])) > 3  # images and draws have their own t


def test_the_noise_of_an_image_differs_between_timesteps():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = [gaussian_noise(keys, jnp.full(3, t), SHAPE) for t in range(4)]
    assert np.unique(noise).size == 4 * 3 * 16


@pytest.mark.full
def test_noise_differs_between_images_draws_timesteps_and_seeds():
    same = np.repeat(make_images(1), 3, axis=0)
    terms, other = (run(same, make_strata(T), draws=2, seed=seed) for seed in (0, 1))
    # ‖x_0 - x̂_0‖² without its trend over t
    ratios = terms.mse / Closed.form().of(same)[1][:, None, :]
    assert len(np.unique(ratios)) == ratios.size
    assert np.all(terms.mse != other.mse)


@pytest.mark.full
def test_the_batch_does_not_matter():
    images = make_images(10)
    whole, small = (run(images, make_strata(T, 7), draws=2, batch_size=size) for size in (10, 3))
    np.testing.assert_array_equal(whole.t, small.t)
    np.testing.assert_allclose(whole.bits, small.bits, rtol=2e-5, atol=1e-7)
    assert small.bits.shape == (10, 2, len(make_strata(T, 7).first))  # no row of padding


@pytest.mark.full
def test_eight_devices_find_what_one_finds(tmp_path):
    here = run(make_images(10), make_strata(T, 7))
    script = (
        "import sys, jax; sys.path.insert(0, 'tests/evaluation'); import test_bound as t\n"
        "assert jax.local_device_count() == 8\n"
        "terms = t.run(t.make_images(10), t.make_strata(t.T, 7), batch_size=9)\n"
        "t.np.savez(sys.argv[1], t=terms.t, bits=terms.bits)"
    )
    out = tmp_path / "eight.npz"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, out],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = np.load(out)
    np.testing.assert_array_equal(here.t, there["t"])
    np.testing.assert_allclose(here.bits, there["bits"], rtol=2e-5, atol=1e-7)


@pytest.mark.full
def test_a_stopped_evaluation_goes_on_with_another_batch_size(tmp_path):
    images, strata, path = make_images(10), make_strata(T, 7), tmp_path / "bound.npz"
    settings = {"seed": 0, "num_images": 10, "versions": {"jax": "1"}}
    whole = tally.add(tally.empty(T, 2), strata, run(images, strata, draws=2))
    first = tally.add(tally.empty(T, 2), strata, run(images[:4], strata, draws=2, batch_size=4))
    results.save_tally(path, first, settings)
    found = results.load_tally(path, settings, tally.empty(T, 2))
    assert found.num_images == 4
    again = tally.add(found, strata, run(images, strata, draws=2, batch_size=3, done=4))
    for ours, theirs in zip(whole, again, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


def test_tallies_of_parts_of_the_images_merge_to_that_of_all():
    images, strata = make_images(7), make_strata(T, 7)
    terms = run(images, strata, draws=2)

    def tally_rows(rows):
        return tally.add(tally.empty(T, 2), strata, Terms(*(part[rows] for part in terms)))

    whole, parts = (
        tally_rows(slice(None)),
        [tally_rows(slice(*bounds)) for bounds in ((0, 3), (3, 3), (3, 7))],
    )
    merged = tally.merge(tally.merge(parts[0], parts[1]), parts[2])
    for ours, theirs in zip(merged, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)  # float64 sums in another order


def test_a_tally_of_other_settings_or_a_damaged_one_is_refused(tmp_path):
    path, none = tmp_path / "bound.npz", tally.empty(T, 1)
    assert results.load_tally(path, {"seed": 0}, none).num_images == 0
    results.save_tally(path, tally.empty(T, 1), {"seed": 0})
    with pytest.raises(UsageError, match=r"seed is 0 there, 1 here.*--out"):
        results.load_tally(path, {"seed": 1}, none)
    for damaged in (path.read_bytes()[:200], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(FailureError, match=r"bound.npz is damaged"):
            results.load_tally(path, {"seed": 0}, none)


def test_results_that_cannot_be_read_are_not_taken_for_damaged_ones(tmp_path, monkeypatch):
    path = tmp_path / "bound.npz"
    results.save_tally(path, tally.empty(T, 1), {"seed": 0})
    monkeypatch.setattr(
        results, "read_file", mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    )
    for read in (
        lambda: results.load_tally(path, {}, tally.empty(T, 1)),
        lambda: results.check_record(path, {}),
    ):
        with pytest.raises(FailureError, match=r"Cannot read .*bound.npz: Permission denied"):
            read()


@pytest.mark.full
def test_the_parts_add_up_and_the_table_is_the_sum():
    strata = make_strata(T, 7)
    summary = tally.summarize(
        tally.add(tally.empty(T, 3), strata, run(make_images(6), strata, draws=3)), strata
    )
    parts = summary.prior + summary.divergences.mean + summary.decoder.mean
    assert parts == pytest.approx(summary.total.mean, rel=1e-12)
    assert summary.prior + summary.contributions.sum() == pytest.approx(
        summary.total.mean, rel=1e-12
    )
    assert summary.visits.sum() == 6 * 3 * len(strata.first)
    assert np.all(np.isnan(summary.bits) == (summary.visits == 0))


def test_the_error_at_one_t_is_that_of_a_mean_over_images_and_draws_are_no_more_images():
    terms = run(make_images(6), make_strata(T), draws=3)
    strata = make_strata(T)
    for draws in (1, 3):
        some = Terms(*(x[:, :draws] for x in terms[:3]), terms.prior)
        summary = tally.summarize(tally.add(tally.empty(T, draws), strata, some), strata)
        for table, found in (
            (some.bits, summary.bits_standard_error),
            (some.mse, summary.mse_standard_error),
        ):
            per_image = table.astype(np.float64).mean(axis=1)
            np.testing.assert_allclose(found, per_image.std(axis=0, ddof=1) / np.sqrt(6), rtol=1e-9)


@pytest.mark.parametrize("stride", [0, -1, T + 1])
def test_a_stride_that_is_not_of_the_chain_is_refused(stride):
    with pytest.raises(
        UsageError, match=f"stride is {stride}: the chain has {T} timesteps, so choose 1"
    ):
        make_strata(T, stride)


@pytest.mark.parametrize("count", [0, -1, 7])
def test_a_number_of_images_that_is_not_there_is_refused(count):
    with pytest.raises(UsageError, match=f"num_images is {count}: split 'test' has 6 images"):
        check_images(make_source(make_images(6)), SHAPE, split="test", num_images=count)


def test_images_that_the_model_cannot_judge_are_refused():
    source = make_source(make_images(6))
    assert check_images(source, SHAPE, split="test", num_images=None) == 6
    with pytest.raises(UsageError, match="4x4x1, but the model was trained on 8x8x3"):
        check_images(source, (8, 8, 3), split="test", num_images=None)
    floats = make_source(make_images(6).astype(np.float32) * 2)
    with pytest.raises(UsageError, match=r"are float32.*uint8 values in 0\.\.255"):
        check_images(floats, SHAPE, split="test", num_images=None)


def test_a_chain_with_a_step_without_noise_has_no_likelihood():
    with np.errstate(divide="ignore", invalid="ignore"):
        schedule = make_schedule(make_betas("linear", T, beta_start=1e-30, beta_end=0.35))
    with pytest.raises(UsageError, match="has no likelihood: its schedule adds no noise at t = 0"):
        check_has_bound(schedule)
    # the end that destroys the signal is no obstacle
    check_has_bound(make_schedule(make_betas("jsd", T)))


def test_a_term_that_is_not_finite_is_named():
    schedule, strata = build_schedule(), make_strata(T)
    nan = make_bound(
        lambda _: make_process(Chain(make_betas("linear", T)), "x_0", "fixed_small").denoiser(
            lambda x_t, time: jnp.where(time[:, None, None, None] == 7, jnp.nan, x_t),
            schedule,
            clip="static",
        ),
        schedule,
        strata,
    )
    stream = stream_terms(
        nan, {}, make_source(make_images(2)), seed=0, num_images=2, draws=1, batch_size=1, done=1
    )
    with pytest.raises(FailureError, match="term of image 1 at t = 7 is nan"):
        list(stream)


@pytest.mark.parametrize("name", ["draws", "batch_size"])
def test_counts_below_one_are_refused(name):
    options = {"seed": 0, "num_images": 2, "draws": 1, "batch_size": 1} | {name: 0}
    with pytest.raises(UsageError, match=f"{name} is 0"):
        next(stream_terms(None, {}, make_source(make_images(2)), **options))


@pytest.mark.full
def test_the_bound_of_a_conditional_model_is_that_of_each_image_given_its_own_label():
    """A model that adds its label / 10 to what it predicts.

    Every label's images have the terms of that one model.
    """
    schedule, strata, images = build_schedule(), make_strata(T, 20), make_images(10)
    labels = np.array([0, 2, 1, 1, 0, 2, 2, 0, 1, 2], np.int32)

    def denoiser(shift):
        return make_process(Chain(make_betas("linear", T)), "x_0", "fixed_small").denoiser(
            lambda x_t, time: exact_x_0(schedule, x_t, time) + shift, schedule, clip="none"
        )

    def terms(source, make, **options):
        bound = make_bound(make, schedule, strata, **options)
        batches = stream_terms(bound, {}, source, seed=0, num_images=10, draws=1, batch_size=4)
        return Terms(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))

    conditioned = terms(
        ArraySource(images, labels, 3, "test"),
        lambda params, condition: denoiser(condition[:, None, None, None] / 10),
        make_condition=lambda x_0, labels: labels,
    )
    for label in range(3):
        alone = terms(make_source(images), lambda params, label=label: denoiser(label / 10))
        own = labels == label
        np.testing.assert_array_equal(conditioned.t, alone.t)
        np.testing.assert_allclose(
            conditioned.bits[own], alone.bits[own], rtol=1e-4, atol=1e-6
        )  # float32
        assert np.all(np.abs(conditioned.mse[~own] - alone.mse[~own]).max(axis=(1, 2)) > 1e-4)
