"""Guidance of the exact models of a Gaussian mixture, whose classes are groups of components.

The expected values are by Bayes' rule.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.gaussian import q_posterior
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.guidance import (
    EVERYWHERE,
    Interval,
    autoguidance,
    class_log_prob,
    classifier_free,
    classifier_guidance,
    interval_from_fractions,
)
from ddpm_jax.samplers.loop import sample

rng = np.random.default_rng(0)
T, B, SHAPE = 40, 6, (2, 3, 1)
CHAIN = Chain(make_betas("linear", T, beta_start=1e-3, beta_end=0.3))
SCHEDULE = CHAIN.at(dtype=np.float64)
WEIGHTS, VARIANCES = np.array([0.1, 0.3, 0.2, 0.4]), np.array([0.01, 0.09, 0.04, 0.02])
MEANS = rng.uniform(-1, 1, (4, *SHAPE))
CLASSES = {0: [0, 1], 1: [2, 3]}  # the components of each class
WHOLE = mixtures.make_mixture(WEIGHTS, MEANS, VARIANCES, dtype=np.float64)
PARTS = [
    mixtures.make_mixture(WEIGHTS[k], MEANS[k], VARIANCES[k], dtype=np.float64)
    for k in CLASSES.values()
]
PRIOR = np.array([WEIGHTS[k].sum() for k in CLASSES.values()])
NULL = len(CLASSES)

X_T = rng.normal(size=(B, *SHAPE))
LEVELS = np.array([0, 3, 12, 20, 31, T - 1])
LABELS = np.array([0, 1, 1, 0, 1, 0])


@pytest.fixture(autouse=True)
def float64():
    """Formulas are compared in float64, where only a wrong formula differs by more than 1e-9."""
    with jax.enable_x64(True):
        yield


@jax.jit
def conditional(x_t, t, label):
    """The exact model of each class, and of the whole mixture for the null class."""
    of_each = [mixtures.exact_denoiser(part, SCHEDULE)(x_t, t) for part in [*PARTS, WHOLE]]
    return jax.tree.map(lambda *fields: jnp.stack(fields)[label, jnp.arange(len(label))], *of_each)


MODEL = from_function(SCHEDULE, conditional)


def log_class_probs(x_t, t):
    """log p(y|x_t) of both classes by Bayes' rule, [B, 2]."""

    def of_one(x, signal, noise):
        log_joint = [
            mixtures.log_prob(mixtures.diffused(part, signal, noise), x[None])[0] for part in PARTS
        ]
        return jax.nn.log_softmax(jnp.stack(log_joint) + jnp.log(PRIOR))

    signal, noise = (
        jnp.asarray(table)[t]
        for table in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar)
    )
    return jax.vmap(of_one)(x_t, signal, noise)


@jax.jit
def log_prob(schedule, x_t, t, labels):
    return log_class_probs(x_t, t)[jnp.arange(len(labels)), labels]


def free(scale, **options):
    return classifier_free(MODEL, LABELS, np.full(B, NULL), scale=scale, **options)


def by_classifier(scale, **options):
    whole = mixtures.exact_denoiser(WHOLE, SCHEDULE)
    return classifier_guidance(whole, log_prob, LABELS, scale=scale, **options)


def assert_consistent(prediction, x_t=X_T, t=LEVELS):
    """x_0, ε and the mean say the same thing."""
    signal, noise = (
        table[t][:, None, None, None]
        for table in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar)
    )
    np.testing.assert_allclose(
        signal * prediction.x_0 + noise * prediction.eps, x_t, rtol=1e-9, atol=1e-9
    )
    mean = q_posterior(SCHEDULE, prediction.x_0, x_t, t).mean
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.full
def test_classifier_guidance_with_the_exact_classifier_is_the_exact_conditional_model():
    guided, exact = by_classifier(1.0)(X_T, LEVELS), conditional(X_T, LEVELS, LABELS)
    for name in ("x_0", "eps", "mean"):
        np.testing.assert_allclose(
            getattr(guided, name), getattr(exact, name), rtol=1e-9, atol=1e-9
        )
    whole = mixtures.exact_denoiser(WHOLE, SCHEDULE)(X_T, LEVELS)
    np.testing.assert_array_equal(guided.log_variance, whole.log_variance)
    assert np.abs(whole.x_0 - exact.x_0).max() > 0.1, "the class matters"


@pytest.mark.parametrize("guide", [free, by_classifier])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_the_guided_score_is_that_of_the_density_times_the_class_probability_to_a_power(
    guide, scale
):
    signal, noise = SCHEDULE.sqrt_alphas_bar[LEVELS], SCHEDULE.sqrt_one_minus_alphas_bar[LEVELS]

    @jax.jit
    @jax.grad
    def score(x_t):
        def of_one(x, signal, noise):
            return mixtures.log_prob(mixtures.diffused(WHOLE, signal, noise), x[None])[0]

        return jnp.sum(
            jax.vmap(of_one)(x_t, signal, noise) + scale * log_prob(SCHEDULE, x_t, LEVELS, LABELS)
        )

    prediction = jax.jit(lambda x_t: guide(scale)(x_t, LEVELS))(X_T)
    ours = -prediction.eps / noise[:, None, None, None]
    np.testing.assert_allclose(ours, score(jnp.asarray(X_T)), rtol=1e-8, atol=1e-8)
    assert_consistent(prediction)


def test_scale_one_is_the_conditional_and_zero_the_unconditional_model_to_the_last_bit():
    conditioned, unconditioned = (
        conditional(X_T, LEVELS, labels) for labels in (LABELS, np.full(B, NULL))
    )
    for ours, theirs in (
        (free(1.0), conditioned),
        (free(0.0), unconditioned),
        (free(1.0, rescale=0.7), conditioned),
    ):
        for name in ("x_0", "eps", "mean"):
            np.testing.assert_array_equal(getattr(ours(X_T, LEVELS), name), getattr(theirs, name))
    np.testing.assert_array_equal(free(0.0)(X_T, LEVELS).log_variance, conditioned.log_variance)


def test_each_image_may_have_its_own_scale():
    scales = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    for guide in (free, by_classifier):
        together = guide(scales)(X_T, LEVELS)
        for i, scale in enumerate(scales):
            np.testing.assert_allclose(
                together.eps[i], guide(scale)(X_T, LEVELS).eps[i], rtol=1e-12
            )


def test_autoguidance_extrapolates_from_the_weaker_model():
    blurred = mixtures.make_mixture(WEIGHTS, 0.8 * MEANS, 2 * VARIANCES, dtype=np.float64)
    model, weaker = (mixtures.exact_denoiser(mixture, SCHEDULE) for mixture in (WHOLE, blurred))
    strong, weak = model(X_T, LEVELS), weaker(X_T, LEVELS)
    guided = autoguidance(model, weaker, scale=2.5)(X_T, LEVELS)
    np.testing.assert_allclose(
        guided.eps, np.asarray(weak.eps) + 2.5 * (strong.eps - weak.eps), rtol=1e-12
    )
    np.testing.assert_array_equal(guided.log_variance, strong.log_variance)
    assert_consistent(guided)
    half = autoguidance(model, weaker, scale=2.5, interval=interval_from_fractions(CHAIN, 0.0, 0.5))
    inside = LEVELS / (T - 1) <= 0.5
    np.testing.assert_array_equal(half(X_T, LEVELS).eps[~inside], strong.eps[~inside])
    np.testing.assert_array_equal(half(X_T, LEVELS).eps[inside], guided.eps[inside])


@pytest.mark.parametrize("guide", [free, by_classifier])
def test_outside_the_interval_the_model_is_not_guided(guide):
    low, high = 12 / (T - 1), 31 / (T - 1)  # both ends are levels of the test, and included
    limited = guide(4.0, interval=interval_from_fractions(CHAIN, low, high))(X_T, LEVELS)
    guided, unguided = guide(4.0)(X_T, LEVELS), guide(1.0 if guide is free else 0.0)(X_T, LEVELS)
    expected = np.where(
        ((LEVELS >= 12) & (LEVELS <= 31))[:, None, None, None], guided.eps, unguided.eps
    )
    np.testing.assert_array_equal(limited.eps, expected)


def test_an_interval_names_noise_levels_and_not_rows():
    chain = Chain(CHAIN.betas, time_scale=1000 / T)
    short = chain.at(np.array([5, 10, 20, 30]))
    inside = interval_from_fractions(chain, 0.25, 0.75)  # t = 9.75 to 29.25
    guided = (short.timesteps >= inside.low) & (short.timesteps <= inside.high)
    assert guided.tolist() == [False, True, True, False]
    whole, ends = chain.at().timesteps, interval_from_fractions(chain, 0.0, 1.0)
    assert np.all((whole >= ends.low) & (whole <= ends.high))


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_is_the_papers_formula_on_v(rescale):
    """Lin et al. 2024, eq. 15 and 16, in NumPy, image by image."""
    plain, conditioned = free(5.0)(X_T, LEVELS), conditional(X_T, LEVELS, LABELS)
    rescaled = free(5.0, rescale=rescale)(X_T, LEVELS)
    for i, t in enumerate(LEVELS):
        signal, noise = SCHEDULE.sqrt_alphas_bar[t], SCHEDULE.sqrt_one_minus_alphas_bar[t]
        v, v_conditioned = (
            signal * np.asarray(p.eps[i]) - noise * np.asarray(p.x_0[i])
            for p in (plain, conditioned)
        )
        expected = rescale * v * v_conditioned.std() / v.std() + (1 - rescale) * v
        ours = signal * np.asarray(rescaled.eps[i]) - noise * np.asarray(rescaled.x_0[i])
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    assert_consistent(rescaled)
    assert np.abs(rescaled.x_0 - plain.x_0).max() > 0.1


def test_rescaling_is_that_of_diffusers_for_a_network_that_predicts_v():
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("diffusers.guiders.guider_utils")
    plain, conditioned = free(5.0)(X_T, LEVELS), conditional(X_T, LEVELS, LABELS)
    signal, noise = (
        table[LEVELS][:, None, None, None]
        for table in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar)
    )
    v, v_conditioned, ours = (
        np.asarray(signal * p.eps - noise * p.x_0)
        for p in (plain, conditioned, free(5.0, rescale=0.7)(X_T, LEVELS))
    )
    theirs = utils.rescale_noise_cfg(
        torch.tensor(v), torch.tensor(v_conditioned), guidance_rescale=0.7
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-9)


def test_rescaling_an_image_without_spread_leaves_it():
    def flat(x_t, t, condition):
        return Prediction(*(jnp.zeros_like(x_t),) * 4)

    guided = classifier_free(from_function(SCHEDULE, flat), LABELS, LABELS, scale=3.0, rescale=1.0)(
        X_T, LEVELS
    )
    np.testing.assert_array_equal(guided.x_0, 0)


def test_one_evaluation_of_both_halves_and_one_program_for_all_scales():
    calls = []

    def counted(x_t, t, condition):
        calls.append((x_t.shape, t.shape, condition["label"].shape))
        return conditional(x_t, t, condition["label"])

    @jax.jit
    def run(scale, interval, rescale):
        condition, null = {"label": LABELS}, {"label": np.full(B, NULL)}
        guided = classifier_free(
            from_function(SCHEDULE, counted),
            condition,
            null,
            scale=scale,
            interval=interval,
            rescale=rescale,
        )
        return guided(X_T, LEVELS).eps

    for scale, interval, rescale in (
        (2.0, EVERYWHERE, 0.0),
        (7.5, interval_from_fractions(CHAIN, 0.2, 0.8), 0.5),
    ):
        ours = run(scale, Interval(*map(np.float32, interval)), rescale)
        theirs = free(scale, interval=interval, rescale=rescale)(X_T, LEVELS).eps
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert calls == [((2 * B, *SHAPE), (2 * B,), (2 * B,))]


def test_the_log_probability_of_a_network_is_that_of_its_label_at_the_time_it_was_trained_with():
    schedule, weights = (
        Chain(CHAIN.betas, time_scale=25.0).at(np.array([3, 20]), dtype=np.float64),
        rng.normal(size=3),
    )

    def classifier(x_t, time):
        return (
            jnp.mean(x_t, axis=(1, 2, 3))[:, None] * weights[None]
            + 0.01 * time[:, None] * weights[None] ** 2
        )

    t, labels = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 1, 2, 0, 1, 2])
    logits = (
        X_T.mean(axis=(1, 2, 3))[:, None] * weights
        + 0.01 * np.array([75.0, 500.0])[t][:, None] * weights**2
    )
    expected = logits[np.arange(B), labels] - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(
        class_log_prob(classifier)(schedule, X_T, t, labels), expected, rtol=1e-9
    )


@pytest.mark.full
@pytest.mark.parametrize("guide", ["free", "classifier"])
def test_guided_chains_of_scale_one_draw_the_distribution_of_the_class(guide):
    """By the probability flow; the class has two components, 1/4 and 3/4 of it."""
    count, label = 3000, 0
    labels = np.full(count, label)

    @jax.jit
    def draw(x_T, keys):
        if guide == "free":
            denoiser = classifier_free(MODEL, labels, np.full(count, NULL), scale=1.0)
        else:
            whole = mixtures.exact_denoiser(WHOLE, SCHEDULE)
            denoiser = classifier_guidance(whole, log_prob, labels, scale=1.0)
        return sample(denoiser, ddim(CHAIN, np.arange(T), dtype=np.float64), x_T, keys).x_0

    keys = image_keys(jax.random.key(0), jnp.arange(count))
    draws = np.asarray(draw(jnp.asarray(initial_noise(keys, SHAPE), jnp.float64), keys))
    squares = [np.square(draws - mean).sum(axis=(1, 2, 3)) for mean in MEANS]
    densities = [
        w * v ** (-draws[0].size / 2) * np.exp(-s / (2 * v))
        for w, v, s in zip(WEIGHTS, VARIANCES, squares, strict=True)
    ]
    nearest = np.argmax(densities, axis=0)
    share = WEIGHTS[0] / WEIGHTS[CLASSES[label]].sum()
    assert np.isin(nearest, CLASSES[label]).mean() > 0.97
    # four standard errors, and half as much again for 40 steps of a method of first order
    assert abs((nearest == 0).mean() - share) < 6 * math.sqrt(share * (1 - share) / count)
    mean, variance = mixtures.moments(PARTS[label])
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 6 * np.sqrt(variance / count))


@pytest.mark.parametrize("scale", [-0.5, math.inf, math.nan, np.array([1.0, -1.0])])
def test_a_scale_that_is_negative_or_not_finite_is_refused(scale):
    for guide in (free, by_classifier):
        with pytest.raises(UsageError, match=r"guidance scale is .*not negative"):
            guide(scale)
    with pytest.raises(UsageError, match="guidance scale"):
        autoguidance(MODEL, MODEL, scale=scale)


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.5), (0.5, 0.5), (0.8, 0.2), (0.0, 1.1), (math.nan, 1.0)]
)
def test_an_interval_outside_the_chain_or_empty_is_refused(low, high):
    with pytest.raises(UsageError, match=r"guidance interval is .* two fractions"):
        interval_from_fractions(CHAIN, low, high)


@pytest.mark.parametrize("rescale", [-0.1, 1.5, math.nan])
def test_a_rescaling_outside_0_to_1_is_refused(rescale):
    with pytest.raises(UsageError, match="rescaling is"):
        free(2.0, rescale=rescale)


def test_a_classifier_cannot_guide_a_chain_that_starts_from_nothing():
    schedule = Chain(make_betas("jsd", 10)).at()
    with pytest.raises(UsageError, match=r"alphas_bar = 0.*classifier-free"):
        classifier_guidance(mixtures.exact_denoiser(WHOLE, schedule), log_prob, LABELS, scale=1.0)
