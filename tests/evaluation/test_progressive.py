"""Progressive coding by the paper's algorithm 3, step by step; chains from x_t.

Also interpolation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import randomness
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation import progressive, tally
from ddpm_jax.evaluation.bound import Terms, make_bound
from ddpm_jax.evaluation.strata import make_strata
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import sample

MU, SIGMA = 0.1, 0.25
T = 12
SHAPE = (8, 8, 1)
BETAS = make_betas("linear", T, beta_start=1e-2, beta_end=0.7)
SCHEDULE = make_schedule(BETAS)


def make_denoiser(schedule, *, broken=False):
    """The exact denoiser of pixels N(MU, SIGMA²), affine in x_t; `broken` gives nan."""

    def network(x_t, time):
        a_bar = jnp.asarray(SCHEDULE.alphas_bar)[time.astype(int)].reshape(-1, 1, 1, 1)
        gain = jnp.sqrt(a_bar) * SIGMA**2 / (a_bar * SIGMA**2 + 1 - a_bar)
        return jnp.nan * x_t if broken else MU + gain * (x_t - jnp.sqrt(a_bar) * MU)

    return lambda _: make_process(Chain(BETAS), "x_0", "fixed_small").denoiser(
        network, schedule, clip="none"
    )


def make_images(count, shape=SHAPE):
    pixels = np.random.default_rng(0).normal(MU, SIGMA, (count, *shape))
    return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)


def summarise(images, draws, stride=1):
    strata = make_strata(T, stride)
    bound = make_bound(make_denoiser(SCHEDULE), SCHEDULE, strata)
    parts = [
        bound({}, jax.random.key(0), draw, images, np.arange(len(images))) for draw in range(draws)
    ]
    terms = Terms(
        *(np.stack([part[i] for part in parts], axis=1) for i in range(3)), parts[0].prior
    )
    return tally.summarize(tally.add(tally.empty(T, draws), strata, terms), strata)


def algorithm_3(x_0, rng):
    """Send x_0 one x_t after another, in float64.

    Returns bits/dim received and the error of the x_0 shown, at every t.

    Each x_{t-1} is drawn given the x_t that was sent, unlike in the bound's table, whose x_t are
    drawn one by one.
    """
    a_bar = np.cumprod(1 - BETAS)
    a_prev = np.append(1, a_bar[:-1])
    x_t = np.sqrt(a_bar[-1]) * x_0 + np.sqrt(1 - a_bar[-1]) * rng.standard_normal(x_0.shape)
    received = np.mean(a_bar[-1] * x_0**2 - a_bar[-1] - np.log(1 - a_bar[-1])) / (2 * np.log(2))
    points = []
    for t in reversed(range(T)):
        gain = np.sqrt(a_bar[t]) * SIGMA**2 / (a_bar[t] * SIGMA**2 + 1 - a_bar[t])
        shown = MU + gain * (x_t - np.sqrt(a_bar[t]) * MU)
        points.append((t, received, 127.5 * np.sqrt(np.mean((x_0 - shown) ** 2))))
        if t == 0:
            return np.array(points)
        variance = BETAS[t] * (1 - a_prev[t]) / (1 - a_bar[t])
        of_x_0 = np.sqrt(a_prev[t]) * BETAS[t] / (1 - a_bar[t])
        of_x_t = np.sqrt(1 - BETAS[t]) * (1 - a_prev[t]) / (1 - a_bar[t])
        received += np.mean((of_x_0 * (x_0 - shown)) ** 2) / (2 * variance) / np.log(2)
        x_t = of_x_0 * x_0 + of_x_t * x_t + np.sqrt(variance) * rng.standard_normal(x_0.shape)


def test_the_curve_is_that_of_the_papers_algorithm_3():
    """1 % is 2.5 standard errors of the means compared.

    They are means of squares over 128 x 128 pixels and 4 draws or walks.
    """
    images = make_images(1, (128, 128, 1))
    curve = progressive.rate_distortion(summarise(images, draws=4))
    x_0 = images.astype(np.float64) / 127.5 - 1
    sent = np.mean([algorithm_3(x_0, np.random.default_rng(seed)) for seed in range(4)], axis=0)
    np.testing.assert_array_equal(curve.t, sent[:, 0])
    np.testing.assert_allclose(curve.rate, sent[:, 1], rtol=1e-2)
    np.testing.assert_allclose(curve.rmse, sent[:, 2], rtol=1e-2)


@pytest.mark.slow
def test_the_curve_begins_with_the_prior_and_ends_with_the_bound_less_the_decoder():
    summary = summarise(make_images(3), draws=2, stride=5)
    curve = progressive.rate_distortion(summary)
    assert np.all(np.diff(curve.t) < 0)
    assert np.all(np.diff(curve.rate) > 0)
    assert curve.rate[-1] + summary.decoder.mean == pytest.approx(summary.total.mean, rel=1e-12)
    assert progressive.rate_distortion(summarise(make_images(3), draws=2)).rate[0] == pytest.approx(
        summary.prior
    )


def test_a_timestep_that_nobody_visited_is_no_point_of_the_curve():
    terms = Terms(
        np.array([[[0, 2]]]),
        np.array([[[2.0, 0.5]]]),
        np.array([[[0.01, 0.04]]]),
        np.array([0.125]),
    )
    strata = make_strata(4)._replace(first=np.array([0, 1]), size=np.array([1, 3]))
    summary = tally.summarize(tally.add(tally.empty(4, 1), strata, terms), strata)
    curve = progressive.rate_distortion(summary)
    np.testing.assert_array_equal(curve.t, [2, 0])
    np.testing.assert_allclose(curve.rate, [0.125, 0.125 + 3 * 0.5])
    np.testing.assert_allclose(curve.rmse, [127.5 * 0.2, 127.5 * 0.1])
    assert np.isnan(curve.rmse_standard_error).all()  # one image has no spread


@pytest.mark.full
def test_a_chain_that_sets_out_from_its_own_x_t_ends_where_it_ended():
    keys = randomness.image_keys(jax.random.key(1), jnp.arange(3))
    denoiser, x_T = make_denoiser(SCHEDULE)(None), randomness.initial_noise(keys, SHAPE)
    whole = sample(denoiser, ancestral(SCHEDULE), x_T, keys, num_frames=T + 1)
    for t in (0, 5, T - 1):
        rest = sample(
            denoiser, progressive.from_timestep(SCHEDULE, t), whole.frames_x_t[T - 1 - t], keys
        )
        np.testing.assert_allclose(rest.x_0, whole.x_0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [-1, T])
def test_a_t_outside_the_chain_is_refused(t):
    with pytest.raises(
        UsageError, match=rf"t is {t}: the chain has the timesteps 0 \(least noise\) to {T - 1}"
    ):
        progressive.from_timestep(SCHEDULE, t)


def interpolate(pair, **options):
    options = {"t": 6, "steps": 5} | options
    run = progressive.make_interpolate(make_denoiser(SCHEDULE), SCHEDULE, **options)
    return run({}, to_model_range(pair), seed=0)


@pytest.mark.parametrize("t", [0, 6, T - 1])
def test_through_an_affine_model_the_way_is_a_straight_line(t):
    """Encoding and decoding are affine, the noise is shared by all λ.

    Images between are mixtures of the ends.
    """
    pair = make_images(2)
    found = interpolate(pair, t=t)
    np.testing.assert_allclose(found.lambdas, [0, 0.25, 0.5, 0.75, 1])
    first, last = found.images[0].astype(float), found.images[-1].astype(float)
    for weight, image in zip(found.lambdas, found.images, strict=True):
        inside = (image > 0) & (image < 255)  # what saturates bends the line
        straight = (1 - weight) * first + weight * last
        assert np.abs(image - straight)[inside].max() <= 1  # half a level of rounding in each


@pytest.mark.full
def test_each_end_is_the_decoding_of_its_image():
    pair, t = make_images(2), 6
    found = interpolate(pair, t=t)
    for i, end in ((0, found.images[0]), (1, found.images[-1])):
        keys = randomness.image_keys(jax.random.key(0), jnp.zeros(1, jnp.int32))
        eps = randomness.initial_noise(keys, SHAPE)
        x_t = q_sample(SCHEDULE, jnp.asarray(pair[i : i + 1]) / 127.5 - 1, jnp.array([t]), eps)
        x_0 = sample(
            make_denoiser(SCHEDULE)(None), progressive.from_timestep(SCHEDULE, t), x_t, keys
        ).x_0
        np.testing.assert_array_equal(end, to_uint8(x_0[0]))


@pytest.mark.full
def test_little_noise_gives_the_images_back_and_turning_them_round_turns_the_row_round():
    pair = make_images(2)
    here, back = interpolate(pair, t=0), interpolate(pair[::-1], t=0)
    np.testing.assert_array_equal(here.images, back.images[::-1])
    # One step of noise 0.1 on pixels of spread 0.25: a seventh of the variance is lost.
    assert np.abs(here.images[0].astype(float) - pair[0]).mean() < 0.1 * 127.5
    assert (
        np.abs(here.images[0].astype(float) - pair[0]).mean()
        < np.abs(pair[1].astype(float) - pair[0]).mean() / 2
    )


def test_a_mixture_of_latents_keeps_the_variance_of_the_noise():
    """With two black images only the noise is left.

    It is the same at every λ because it is shared.
    """
    found = interpolate(np.full((2, *SHAPE), 128, np.uint8))
    for image in found.images:
        np.testing.assert_array_equal(image, found.images[0])


def test_one_step_of_interpolation_and_broken_weights_are_refused():
    with pytest.raises(UsageError, match="interpolation steps is 1: choose at least 2"):
        interpolate(make_images(2), steps=1)
    broken, pair = make_denoiser(SCHEDULE, broken=True), to_model_range(make_images(2))
    with pytest.raises(FailureError, match="not-a-number"):
        progressive.make_interpolate(broken, SCHEDULE, t=3, steps=2)({}, pair, seed=0)


def share(schedule=SCHEDULE, **options):
    options = {"num_latents": 4, "num_samples": 6, "seed": 2} | options
    return progressive.samples_sharing_latents(
        make_denoiser(schedule), schedule, {}, SHAPE, **options
    )


@pytest.mark.full
def test_samples_of_a_latent_agree_the_more_the_smaller_its_t():
    shared = share()
    np.testing.assert_array_equal(shared.t, [11, 8, 5, 2])
    assert shared.latents.shape == (4, *SHAPE)
    assert shared.images.shape == (4, 6, *SHAPE)
    noise = randomness.initial_noise(randomness.image_keys(jax.random.key(2), jnp.arange(1)), SHAPE)
    np.testing.assert_array_equal(shared.latents[0], to_uint8(noise[0]))
    spread = shared.images.astype(float).std(axis=1).mean(axis=(1, 2, 3))
    assert spread[-1] < 0.85 * spread[:3].min()


@pytest.mark.slow
def test_samples_of_the_last_latent_are_one_image_because_the_last_step_adds_no_noise():
    shared = share(make_schedule(BETAS, timesteps=[2, 5, 8, 11]), num_latents=4, num_samples=3)
    assert list(shared.t) == [3, 2, 1, 0]
    assert np.all(shared.images[-1] == shared.images[-1, :1])
    assert np.any(shared.images[-2] != shared.images[-2, :1])


@pytest.mark.parametrize("count", [0, T + 1])
def test_more_latents_than_the_chain_has_are_refused(count):
    with pytest.raises(UsageError, match=f"{count} latents are asked for: the chain has {T}"):
        share(num_latents=count)
