"""Editing on data with known answers.

They are a Gaussian's q(x_0|x_t), a mixture's q(unknown|known) and the arc of a circle.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.transforms import to_uint8
from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.editing import keep_known, noised, repaint, slerp, start_from
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import SAMPLERS, make_sampler
from ddpm_jax.samplers.spacing import space

CHAIN = Chain(make_betas("linear", 100, beta_start=1e-3, beta_end=0.12))  # σ 0.03 to 20
rng = np.random.default_rng(0)


def make_keys(index, seed=0):
    return image_keys(jax.random.key(seed), jnp.asarray(index))


def assert_moments(x, mean, variance, slack=0.0):
    """Assert moments of x [n] within 5 standard errors and `slack` of the standard deviation.

    The seed is fixed, so the outcome is always the same.
    """
    x, n = np.asarray(x, np.float64), len(x)
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / n) + slack * np.sqrt(variance)
    assert abs(x.var() / variance - 1) < 5 * np.sqrt(2 / n) + slack


# Image-to-image


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [(50, 0.6, 30), (50, 1.0, 50), (50, 0.001, 1), (10, 0.37, 4), (1, 0.2, 1)],
)
def test_strength_keeps_the_lowest_levels_by_its_share(steps, strength, kept):
    times = space(CHAIN, "linspace", steps)
    np.testing.assert_array_equal(start_from(times, strength), times[:kept])


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(UsageError, match=f"strength is {strength}: choose above 0"):
        start_from(np.arange(10), strength)


def test_noise_is_put_on_a_picture_as_q_says_and_by_its_own_key():
    schedule = CHAIN.at([0, 20, 40])
    x_0 = rng.uniform(-1, 1, (3, 2, 2, 1)).astype(np.float32)
    x_T = noised(schedule, x_0, initial_noise(make_keys([4, 5, 6]), (2, 2, 1)))
    alphas_bar = np.cumprod(1 - CHAIN.betas)[40]
    expected = np.sqrt(alphas_bar) * x_0 + np.sqrt(1 - alphas_bar) * np.asarray(
        initial_noise(make_keys([4, 5, 6]), (2, 2, 1))
    )
    np.testing.assert_allclose(x_T, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        noised(schedule, x_0[1:2], initial_noise(make_keys([5]), (2, 2, 1))), x_T[1:2]
    )


@pytest.mark.full
@pytest.mark.parametrize("strength", [0.2, 0.5])
def test_what_comes_of_a_picture_is_what_its_noised_self_may_have_been(strength):
    """With data N(m, v), x_0 given x_t is Gaussian, and x_t given the picture y too.

    Both integrate to a closed form.

    x_0 = m + k (x_t - √ᾱ m) + √(k (1-ᾱ)/√ᾱ) z, k = v √ᾱ / (ᾱ v + 1 - ᾱ), and x_t = √ᾱ y + √(1-ᾱ) ε.
    For one Gaussian the exact reverse step is Gaussian, so ancestral sampling makes no error but
    the last step's missing noise.
    """
    m, v, y = 0.3, 0.25, -0.9
    times = start_from(space(CHAIN, "linspace", 100), strength)
    schedule = CHAIN.at(times)
    data = mixtures.make_mixture([1.0], np.full((1, 4, 4, 1), m), [v])
    keys = make_keys(range(2048))
    x_T = noised(schedule, jnp.full((2048, 4, 4, 1), y), initial_noise(keys, (4, 4, 1)))
    x_0 = sample(mixtures.exact_denoiser(data, schedule), ancestral(schedule), x_T, keys).x_0
    bar = np.cumprod(1 - CHAIN.betas)[times[-1]]
    k = v * np.sqrt(bar) / (bar * v + 1 - bar)
    first = np.cumprod(1 - CHAIN.betas)[0]
    withheld = v * (1 - first) / (first * v + 1 - first)  # the variance of q(x_0|x_t) at the last t
    mean = m + k * np.sqrt(bar) * (y - m)
    variance = k**2 * (1 - bar) + k * (1 - bar) / np.sqrt(bar) - withheld
    assert abs(mean - y) > 0.05  # it moves: by more than the test can miss
    assert_moments(np.ravel(x_0), mean, variance)


@pytest.mark.full
def test_from_one_noised_picture_come_the_components_that_it_may_have_been():
    """q(x_0|x_t) of a mixture: its weights and moments, by the row of a chain of a single step."""
    times = start_from(space(CHAIN, "linspace", 100), 0.4)
    schedule = CHAIN.at(times)
    data = mixtures.make_mixture([0.4, 0.6], np.array([[-0.8, 0.3], [0.6, -0.2]]), [0.15, 0.3])
    x_t = jnp.array([[0.1, 0.05]])
    posterior = mixtures.reverse_posterior(data, CHAIN.at(times[-1:]), x_t, jnp.zeros(1, int))
    mean, variance = (np.asarray(of)[0] for of in jax.vmap(mixtures.moments)(posterior))
    assert 0.2 < posterior.weights[0, 0] < 0.8  # both components are in play
    keys = make_keys(range(16384))
    start = jnp.broadcast_to(x_t, (16384, 2))
    x_0 = sample(mixtures.exact_denoiser(data, schedule), ancestral(schedule), start, keys).x_0
    for axis in range(2):
        # 40 steps, not infinitely many
        assert_moments(x_0[:, axis], mean[axis], variance[axis], slack=0.02)


# Inpainting

MASK = np.array([False, True]).reshape(1, 1, 2, 1)  # the left pixel is known


def walk_of_the_paper(steps, jump, resamplings):
    """Return the levels of the schedule in a figure of Lugmayr et al. 2022, step by step.

    Steps up are included.
    """
    again = {level: resamplings - 1 for level in range(0, steps - jump, jump)}
    level = steps
    while level >= 0:
        level -= 1
        yield level
        if level >= 0 and again.get(level, 0) > 0:
            again[level] -= 1
            for _ in range(jump):
                level += 1
                yield level


@pytest.mark.parametrize(
    ("steps", "jump", "resamplings"), [(25, 10, 3), (20, 5, 4), (7, 1, 2), (6, 6, 5), (9, 4, 1)]
)
def test_the_walk_is_the_papers_its_forward_steps_made_in_one(steps, jump, resamplings):
    times = space(CHAIN, "linspace", steps)
    alphas_bar = np.cumprod(1 - CHAIN.betas)[times]
    sampler = repaint(CHAIN, times, resamplings=resamplings, jump=jump, dtype=np.float64)
    levels = list(walk_of_the_paper(steps, jump, resamplings))
    down = [(before, after) for before, after in itertools.pairwise(levels) if after < before]
    np.testing.assert_array_equal(sampler.rows.t, [before for before, _ in down])
    assert (
        sampler.evaluations
        == sampler.num_rows
        == steps + (resamplings - 1) * jump * -(-(steps - jump) // jump)
    )
    # √α and 1-α of the forward steps between two steps down, composed one by one: x → √α x + √(1-α)
    # z.
    scales, variances = np.ones(len(down)), np.zeros(len(down))
    row = -1
    for before, after in itertools.pairwise(levels):
        if after < before:
            row += 1
        else:
            alpha = alphas_bar[after] / alphas_bar[before]
            scales[row] *= np.sqrt(alpha)
            variances[row] = alpha * variances[row] + 1 - alpha
    np.testing.assert_allclose(sampler.rows.scale, scales, rtol=1e-12)
    np.testing.assert_allclose(sampler.rows.noise**2, variances, rtol=1e-9, atol=1e-15)


def test_the_default_walks_ten_times_each_25th_of_the_chain():
    """Ten steps of 250 in the paper. Both ends: nowhere less than a step."""
    for steps, jump in ((250, 10), (1000, 40), (50, 2), (5, 1)):
        chain = Chain(make_betas("linear", 1000))
        times = space(chain, "linspace", steps)
        default, explicit = repaint(chain, times), repaint(chain, times, resamplings=10, jump=jump)
        jax.tree.map(np.testing.assert_array_equal, default.rows, explicit.rows)


@pytest.mark.parametrize(("steps", "jump", "resamplings"), [(250, 10, 10), (50, 5, 3), (20, 1, 2)])
def test_the_walk_visits_the_levels_that_diffusers_visits(steps, jump, resamplings):
    scheduler = pytest.importorskip("diffusers").RePaintScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(steps, jump_length=jump, jump_n_sample=resamplings)
    rows = repaint(
        Chain(make_betas("linear", 1000)), np.arange(steps), jump=jump, resamplings=resamplings
    ).rows.t
    # Theirs begins with the highest level and names those that the jumps pass by; ours are those
    # that a step leaves.
    theirs = [*(scheduler.timesteps.numpy() // (1000 // steps)), -1]
    np.testing.assert_array_equal(
        rows, [level for level, after in itertools.pairwise(theirs) if after < level]
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"resamplings": 0}, "resamplings is 0: choose at least 1"),
        ({"jump": 0}, "jump is 0: of a chain of 10 steps choose 1 to 10"),
        ({"jump": 11}, "jump is 11: of a chain of 10 steps"),
    ],
)
def test_an_impossible_walk_is_refused(options, complaint):
    with pytest.raises(UsageError, match=complaint):
        repaint(CHAIN, space(CHAIN, "linspace", 10), **options)


# of a picture of two pixels
MEAN, COVARIANCE = np.array([0.2, -0.1]), np.array([[0.3, 0.2], [0.2, 0.25]])
KNOWN = 0.8
CONDITIONAL = (
    MEAN[1] + COVARIANCE[1, 0] / COVARIANCE[0, 0] * (KNOWN - MEAN[0]),
    COVARIANCE[1, 1] - COVARIANCE[1, 0] ** 2 / COVARIANCE[0, 0],
)


def algorithm_1_moments(times, jump, resamplings, variance):
    """Return mean and variance of the unknown pixel at the end.

    Algorithm 1 line by line on the moments, float64.

    With a Gaussian's exact x̂_0 = m + Σ √ᾱ (ᾱ Σ + (1-ᾱ) I)⁻¹ (x - √ᾱ m) every line is linear in x,
    so the moments are exact. a and b of μ = a x_t + b x̂_0 by precisions, as in test_ancestral.
    """
    bars = np.append(np.cumprod(1 - CHAIN.betas)[times], 1.0)  # [-1] is clean data
    mean, covariance = np.zeros(2), np.eye(2)
    levels = list(walk_of_the_paper(len(times), jump, resamplings))
    for t, to in itertools.pairwise(levels):
        alpha = bars[max(t, to)] / bars[min(t, to)]
        if to > t:
            mean, covariance = np.sqrt(alpha) * mean, alpha * covariance + (1 - alpha) * np.eye(2)
            continue
        gain = (
            np.sqrt(bars[t])
            * COVARIANCE
            @ np.linalg.inv(bars[t] * COVARIANCE + (1 - bars[t]) * np.eye(2))
        )
        a, b, sigma_2 = 0.0, 1.0, 0.0
        if t > 0:
            small = (1 - alpha) * (1 - bars[to]) / (1 - bars[t])
            precision = 1 / small
            a, b = (
                np.sqrt(alpha) / (1 - alpha) / precision,
                np.sqrt(bars[to]) / (1 - bars[to]) / precision,
            )
            sigma_2 = {"fixed_small": small, "fixed_large": 1 - alpha}[variance]
        step = a * np.eye(2) + b * gain
        mean = step @ mean + b * (MEAN - np.sqrt(bars[t]) * gain @ MEAN)
        covariance = step @ covariance @ step.T + sigma_2 * np.eye(2)
        mean[0] = np.sqrt(bars[to]) * KNOWN
        # known: drawn independently, covaries with nothing
        covariance = np.diag([1 - bars[to], covariance[1, 1]])
    return mean[1], covariance[1, 1]


@pytest.mark.full
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("jump", "resamplings"), [(1, 1), (1, 5), (3, 4)])
def test_repaint_has_the_law_of_algorithm_1(jump, resamplings, variance):
    times = space(CHAIN, "linspace", 12)
    sampler = repaint(CHAIN, times, jump=jump, resamplings=resamplings)
    bars = np.cumprod(1 - CHAIN.betas)[times]
    gains = np.stack(
        [
            np.sqrt(bar) * COVARIANCE @ np.linalg.inv(bar * COVARIANCE + (1 - bar) * np.eye(2))
            for bar in bars
        ]
    ).astype(np.float32)
    roots = jnp.asarray(np.sqrt(bars), jnp.float32)

    def network(x_t, time):
        row = jnp.searchsorted(jnp.asarray(times, jnp.float32), time)
        away = x_t.reshape(-1, 2) - roots[row][:, None] * jnp.asarray(MEAN, jnp.float32)[None]
        return jnp.asarray(MEAN, jnp.float32).reshape(1, 1, 2, 1) + jnp.einsum(
            "bij,bj->bi", jnp.asarray(gains)[row], away
        ).reshape(x_t.shape)

    denoiser = make_process(CHAIN, "x_0", variance).denoiser(network, sampler.schedule, clip="none")
    keys = make_keys(range(30_000))
    known = jnp.full((30_000, 1, 2, 1), KNOWN)
    x_0 = sample(
        keep_known(denoiser, known, MASK),
        sampler,
        initial_noise(keys, (1, 2, 1)),
        keys,
    ).x_0
    assert_moments(x_0[:, 0, 1, 0], *algorithm_1_moments(times, jump, resamplings, variance))


@pytest.mark.full
def test_by_its_law_resampling_leads_to_the_conditional_distribution():
    """By the recursion of the test above; 100 steps, r = 1, 3, 10, 30, errors of moments:

    mean      0.155   0.064   0.021   0.009
    variance  0.035   0.013   0.005   0.002
    """
    times = space(CHAIN, "linspace", 100)
    errors = [
        np.subtract(algorithm_1_moments(times, 1, r, "fixed_large"), CONDITIONAL)
        for r in (1, 3, 10, 30)
    ]
    means, variances = np.abs(errors).T
    assert np.all(means[:-1] > 2 * means[1:])
    assert np.all(variances[:-1] > 2 * variances[1:])
    np.testing.assert_allclose(means[-1], 0, atol=0.01)
    np.testing.assert_allclose(variances[-1], 0, atol=0.003)


@pytest.mark.full
def test_on_a_mixture_resampling_brings_repaint_nearer_to_the_conditional_distribution():
    """Two components of means ±(½, ½) and deviation ½.

    The known pixel is ½, which gives them their weights.

    4,096 images in 25 steps, r = 1, 3, 10: the mean is off by 0.244, 0.151, 0.080 (standard error
    0.010), the variance by 0.097, 0.056, 0.029 (0.009). The paper's conditioning is approximate for
    r of any size.
    """
    m, s, known = 0.5, 0.5, 0.5
    data = mixtures.make_mixture(
        [0.5, 0.5], np.stack([np.full((1, 2, 1), m), np.full((1, 2, 1), -m)]), [s**2] * 2
    )
    likelihoods = np.exp(-((known - np.array([m, -m])) ** 2) / (2 * s**2))
    share = likelihoods / likelihoods.sum()
    mean = share @ [m, -m]
    variance = s**2 + m**2 - mean**2
    keys = make_keys(range(4096))
    errors = []
    for resamplings in (1, 3, 10):
        sampler = repaint(CHAIN, space(CHAIN, "linspace", 25), resamplings=resamplings)
        picture = jnp.full((4096, 1, 2, 1), known)
        denoiser = keep_known(mixtures.exact_denoiser(data, sampler.schedule), picture, MASK)
        x = np.asarray(
            sample(denoiser, sampler, initial_noise(keys, (1, 2, 1)), keys).x_0, np.float64
        )[:, 0, 1, 0]
        errors.append((abs(x.mean() - mean), abs(x.var() - variance)))
    means, variances = np.array(errors).T
    assert means[0] > means[1] + 0.05 > means[2] + 0.1
    assert variances[0] > variances[1] + 0.015 > variances[2] + 0.03
    assert means[2] < 0.1
    assert variances[2] < 0.05


SHAPE = (4, 4, 1)
PICTURE = rng.uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
HALF = np.broadcast_to(np.arange(4).reshape(1, 1, 4, 1) >= 2, (1, 4, 4, 1))


def mixing_denoiser(schedule):
    """A network in which every pixel depends on its neighbours, known and unknown."""
    kernel = 0.3 * jax.random.normal(jax.random.key(7), (3, 3, 1, 1))

    def network(x_t, time):
        h = jax.lax.conv_general_dilated(
            x_t, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(h + 0.001 * time[:, None, None, None])

    return make_process(CHAIN, "eps", "fixed_large").denoiser(network, schedule, clip="static")


def inpainted(sampler, index=range(3), picture=PICTURE):
    """x_0 of the images `index`, from the noised picture, the right half repainted."""
    keys = make_keys(index)
    known, mask = (jnp.broadcast_to(x, (len(keys), *SHAPE)) for x in (picture, HALF))
    denoiser = keep_known(mixing_denoiser(sampler.schedule), known, mask)
    noise = initial_noise(keys, SHAPE)
    x_T = noised(sampler.schedule, jnp.where(mask, 0, known), noise)
    return np.asarray(
        jax.jit(lambda x_T, keys: sample(denoiser, sampler, x_T, keys).x_0)(x_T, keys)
    )


def test_repaint_ends_with_the_known_pixels_to_the_last_bit():
    x_0 = inpainted(repaint(CHAIN, space(CHAIN, "linspace", 8), resamplings=3))
    np.testing.assert_array_equal(x_0[:, :, :2], np.broadcast_to(PICTURE, x_0.shape)[:, :, :2])
    # the others are not of the picture, and differ
    assert np.ptp(x_0[:, :, 2:], axis=0).min() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_with_the_known_pixels(name):
    x_0 = inpainted(make_sampler(name, CHAIN, steps=8))
    np.testing.assert_array_equal(
        to_uint8(x_0)[:, :, :2], np.broadcast_to(to_uint8(PICTURE), x_0.shape)[:, :, :2]
    )
    np.testing.assert_allclose(
        x_0[:, :, :2], np.broadcast_to(PICTURE, x_0.shape)[:, :, :2], atol=1e-4
    )
    assert np.ptp(x_0[:, :, 2:], axis=0).min() > 1e-3


def test_what_the_picture_holds_under_the_mask_is_not_looked_at():
    sampler = repaint(CHAIN, space(CHAIN, "linspace", 6), resamplings=2)
    np.testing.assert_array_equal(
        inpainted(sampler), inpainted(sampler, picture=np.where(HALF, np.nan, PICTURE))
    )


@pytest.mark.full
def test_an_inpainted_image_depends_on_its_index_alone():
    sampler = repaint(CHAIN, space(CHAIN, "linspace", 6), resamplings=3)
    # A convolution over another batch may sum in another order: rounding, magnified by 1/√ᾱ_T = 20
    # on the way.
    np.testing.assert_allclose(
        inpainted(sampler, [7, 2, 5])[1:2], inpainted(sampler, [2]), atol=2e-5
    )
    assert np.abs(inpainted(sampler, [2]) - inpainted(sampler, [3]))[:, :, 2:].max() > 0.1


@pytest.mark.full
def test_repaint_without_resampling_is_ancestral_sampling():
    times = space(CHAIN, "linspace", 9)
    np.testing.assert_array_equal(
        inpainted(repaint(CHAIN, times, resamplings=1)), inpainted(ancestral(CHAIN.at(times)))
    )


@pytest.mark.full
def test_resampling_alone_leaves_the_distribution_of_samples_as_it_is():
    """Without known pixels a jump and the walk back follow the law of the chain.

    It is exact for data of unit variance.
    """
    sampler = repaint(CHAIN, space(CHAIN, "linspace", 10), resamplings=3)
    denoiser = mixtures.exact_denoiser(
        mixtures.make_mixture([1.0], np.zeros((1, 4, 4, 1)), [1.0]),
        sampler.schedule,
        variance="fixed_large",
    )
    keys = make_keys(range(1024))
    x_0 = sample(denoiser, sampler, initial_noise(keys, SHAPE), keys).x_0
    assert_moments(np.ravel(x_0), 0.0, 1 - CHAIN.betas[0])  # the last step adds no noise


# Between seeds


def test_a_path_begins_and_ends_with_its_seeds_exactly():
    pair = initial_noise(make_keys(range(2)), (8, 8, 3))
    path = slerp(pair, jnp.linspace(0, 1, 5))
    assert path.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(path[0], pair[0])
    np.testing.assert_array_equal(path[-1], pair[1])


def test_between_vectors_of_one_length_all_have_it_and_the_angle_grows_evenly():
    pair = np.asarray(initial_noise(make_keys(range(2)), (8, 8, 3)), np.float64).reshape(2, -1)
    pair *= 14 / np.linalg.norm(pair, axis=1, keepdims=True)
    path = np.asarray(slerp(jnp.float32(pair), jnp.linspace(0, 1, 9)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 14, rtol=1e-6)
    whole = np.arccos(pair[0] @ pair[1] / 14**2)
    steps = np.arccos(np.sum(path[1:] * path[:-1], axis=1) / 14**2)
    np.testing.assert_allclose(steps, whole / 8, rtol=1e-4)


def test_a_quarter_circle_is_cosine_and_sine():
    angle = np.linspace(0, np.pi / 2, 7)
    path = slerp(jnp.eye(2), jnp.float32(angle / (np.pi / 2)))
    np.testing.assert_allclose(path, np.stack([np.cos(angle), np.sin(angle)], axis=1), atol=1e-6)


@pytest.mark.parametrize("second", [[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [3.00001, 4.0]])
def test_parallel_and_opposite_vectors_are_joined_by_a_straight_line(second):
    weights = np.linspace(0, 1, 5, dtype=np.float32)
    pair = np.float32([[3.0, 4.0], second])
    path = slerp(pair, weights)
    np.testing.assert_allclose(
        path, pair[:1] + weights[:, None] * (pair[1:] - pair[:1]), rtol=1e-6, atol=1e-6
    )


def test_between_nearly_opposite_vectors_lies_half_a_circle():
    """Here sin θ divides by little: an arccos in float32 would be off by parts in a hundred."""
    angle = np.pi - 1e-3
    pair = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    weights = np.array([0.25, 0.5, 0.75])
    path = slerp(jnp.float32(pair), jnp.float32(weights))
    exact = np.stack([np.cos(weights * angle), np.sin(weights * angle)], axis=1)
    np.testing.assert_allclose(path, exact, atol=1e-3)
