"""Drawing t: the distributions, their independence of the batch, and the memory of past losses."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion import timesteps

KEY = jax.random.key(7)
N = 20_000
everyone = jnp.arange(N)
uniform = jax.jit(timesteps.uniform, static_argnums=2)
antithetic = jax.jit(timesteps.antithetic, static_argnums=2)
importance = jax.jit(timesteps.importance)
update = jax.jit(timesteps.update_history)


@pytest.mark.parametrize("draw", [uniform, antithetic])
def test_draws_are_uniform(draw):
    """Chi-square at a fixed seed.

    20,000 draws of 20 values find an excess of 25 % at one value (99 % power).
    """
    t = np.asarray(draw(KEY, everyone, 20))
    assert t.dtype == np.int32
    counts = np.bincount(t, minlength=20)
    assert counts.size == 20
    # antithetic draws are 10,000 independent pairs: each half is uniform on its own
    halves = [counts] if draw is uniform else [np.bincount(t[i::2], minlength=20) for i in (0, 1)]
    for half in halves:
        assert stats.chisquare(half).pvalue > 0.01


def test_the_chi_square_test_has_the_stated_power():
    p = np.ones(20)
    p[3] = 1.25
    counts = np.random.default_rng(0).multinomial(N, p / p.sum(), size=2000)
    assert np.mean(stats.chisquare(counts, axis=1).pvalue < 0.01) > 0.99


def test_antithetic_pairs_sum_to_the_last_step():
    t = np.asarray(antithetic(KEY, everyone[:1000], 37))
    assert np.all(t[::2] + t[1::2] == 36)
    assert len(set(t[::2].tolist())) == 37


def full_history(losses):
    return timesteps.LossHistory(
        jnp.asarray(losses, jnp.float32), jnp.full(len(losses), timesteps.HISTORY, jnp.int32)
    )


LOSSES = (
    np.random.default_rng(1).gamma(1.0, size=(15, timesteps.HISTORY))
    * np.logspace(0, 2, 15)[:, None]
)
HISTORY = full_history(LOSSES)


@pytest.mark.parametrize(
    "draw",
    [
        lambda index: uniform(KEY, index, 1000),
        lambda index: antithetic(KEY, index, 1000),
        lambda index: importance(KEY, index, HISTORY)[0],
    ],
)
def test_an_example_draws_the_same_in_any_batch(draw):
    whole = np.asarray(draw(jnp.arange(24)))
    parts = np.concatenate([draw(jnp.arange(start, start + 6)) for start in range(0, 24, 6)])
    np.testing.assert_array_equal(parts, whole)
    assert len(set(whole.tolist())) > 5


def test_draws_depend_on_the_key():
    other = uniform(jax.random.key(8), everyone[:64], 1000)
    assert np.mean(np.asarray(other) == np.asarray(uniform(KEY, everyone[:64], 1000))) < 0.1


def test_importance_follows_the_root_mean_square_loss():
    """Eq. 18, with a thousandth of the draws uniform."""
    root = np.sqrt(np.mean(LOSSES**2, axis=1))
    expected = 0.999 * root / root.sum() + 0.001 / 15
    p = timesteps.importance_probabilities(HISTORY)
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    t, _ = importance(KEY, everyone, HISTORY)
    assert t.dtype == jnp.int32
    counts = np.bincount(t, minlength=15)
    assert stats.chisquare(counts, expected * N).pvalue > 0.01


def test_importance_weights_leave_the_mean_unbiased():
    """Σ_t p_t · f_t / (T p_t) = mean f for any f, exactly.

    On a sample it holds within four standard errors.
    """
    p = np.asarray(timesteps.importance_probabilities(HISTORY), np.float64)
    f = np.linspace(3, 5, 15) ** 2
    t, weight = importance(KEY, everyone, HISTORY)
    np.testing.assert_allclose(weight, 1 / (15 * p[t]), rtol=1e-5)
    estimates = np.asarray(weight) * f[t]
    assert abs(estimates.mean() - f.mean()) < 4 * estimates.std() / N**0.5
    assert abs(f[t].mean() - f.mean()) > 40 * f.std() / N**0.5  # without the weights it is far off


def test_importance_draws_lower_the_variance_of_the_loss():
    f = np.sqrt(np.mean(LOSSES**2, axis=1))
    t, weight = importance(KEY, everyone, HISTORY)
    assert np.std(np.asarray(weight) * f[t]) < 0.02 * np.std(f)


def test_importance_is_uniform_where_there_is_no_loss_at_all():
    nothing = full_history(np.zeros((15, timesteps.HISTORY)))
    np.testing.assert_allclose(timesteps.importance_probabilities(nothing), 1 / 15, rtol=1e-6)
    one = full_history(np.eye(15, timesteps.HISTORY))  # of the first ten t
    assert np.all(np.isfinite(importance(KEY, everyone[:50], one)[1]))


def test_importance_is_uniform_until_every_step_has_a_full_history():
    almost = HISTORY._replace(counts=HISTORY.counts.at[4].set(timesteps.HISTORY - 1))
    for history in (timesteps.init_history(15), almost):
        np.testing.assert_allclose(timesteps.importance_probabilities(history), 1 / 15, rtol=1e-6)
        np.testing.assert_allclose(importance(KEY, everyone[:50], history)[1], 1, rtol=1e-6)
    assert np.ptp(timesteps.importance_probabilities(HISTORY)) > 0.1


def test_history_is_a_queue_of_the_last_losses_of_each_step():
    """Against Python deques, through batches with none, one, several and more than ten of one t."""
    random = np.random.default_rng(2)
    history = timesteps.init_history(6)
    queues = [deque(maxlen=timesteps.HISTORY) for _ in range(6)]
    seen = np.zeros(6, int)
    for batch in range(12):
        t = random.integers(0, 5, 32) if batch % 3 else np.where(random.random(32) < 0.9, 2, 4)
        losses = random.standard_normal(32).astype(np.float32)
        history = update(history, jnp.asarray(t, jnp.int32), jnp.asarray(losses))
        for step, loss in zip(t, losses, strict=True):
            queues[step].append(loss)
            seen[step] += 1
        np.testing.assert_array_equal(history.counts, seen)
        for step, queue in enumerate(queues):
            assert sorted(history.losses[step].tolist()) == sorted(
                [*map(float, queue), *[0.0] * (10 - len(queue))]
            )
    assert seen[2] > 60
    assert seen[5] == 0


def test_history_of_one_batch_equals_that_of_its_halves():
    t = jnp.asarray(np.random.default_rng(3).integers(0, 3, 40), jnp.int32)
    losses = jnp.arange(40.0)
    whole = update(timesteps.init_history(3), t, losses)
    halves = update(update(timesteps.init_history(3), t[:20], losses[:20]), t[20:], losses[20:])
    for a, b in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(a, b)
