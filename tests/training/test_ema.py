"""Averages as the step keeps them: each law against its weights in float64, several at once, in a
checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.training import ema
from ddpm_jax.training.ema import Average
from ddpm_jax.training.ema_profiles import gamma_from_sigma_rel


def _path(linear, steps, **options):
    """Trains and returns (the state, the weights w of steps 0..steps in float64 [steps + 1, 3])."""
    state, step = linear.start(optax.sgd(0.05), **options)
    path = [np.float64(state.params["w"])]
    np.testing.assert_array_equal(state.ema_params["w"], path[0])
    for n in range(steps):
        state, _ = linear.step(step, state, linear.batch(12, seed=n))
        path.append(np.float64(state.params["w"]))
    return state, np.array(path)


def _weighted(path, decays):
    """The average of the path that starts at its beginning and keeps `decays[n]` of itself in
    update n."""
    average = path[0]
    for new, decay in zip(path[1:], decays, strict=True):
        average = decay * average + (1 - decay) * new
    return average


def test_an_average_is_the_weighted_sum_of_all_parameters_from_the_first_step(linear):
    decay, steps = 0.75, 6
    state, path = _path(linear, steps, ema=Average(decay))
    # ema_n = d^n p_0 + (1 - d) sum_k d^(n-k) p_k, k = 1..n
    weights = [decay**steps] + [(1 - decay) * decay ** (steps - k) for k in range(1, steps + 1)]
    np.testing.assert_allclose(state.ema_params["w"], np.dot(weights, path), rtol=1e-6)
    assert state.ema_params["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("average", "decay_at"),
    [
        # 0.1, 0.18, then the ceiling
        (Average(0.25, warmup=True), lambda n: min(0.25, (1 + n) / (10 + n))),
        # EDM: half-life = min(H, ratio * steps done), H = log(1/2) / log(decay) = 2 steps here
        (Average(2**-0.5, rampup_ratio=0.5), lambda n: 0.5 ** (1 / min(2, 0.5 * n)) if n else 0.0),
        (Average(sigma_rel=0.1), lambda n: (1 - 1 / (n + 1)) ** (gamma_from_sigma_rel(0.1) + 1)),
    ],
)
def test_each_law_uses_its_published_decay(linear, average, decay_at):
    state, path = _path(linear, 8, ema=average)
    # Some tens of float32 operations.
    np.testing.assert_allclose(
        state.ema_params["w"], _weighted(path, [decay_at(n) for n in range(8)]), rtol=1e-6
    )


def test_a_power_function_average_weighs_steps_by_time_to_its_power(linear):
    steps, width = 9, 0.2
    state, path = _path(linear, steps, ema=Average(sigma_rel=width))
    # Times; those of (k - 1, k] have the parameters of step k
    fine = np.arange(1, 1000 * steps + 1) / 1000
    weights = (fine - 0.0005) ** gamma_from_sigma_rel(width)
    by_step = weights.reshape(steps, 1000).sum(axis=1) / weights.sum()
    # 1e-5: the midpoint rule.
    np.testing.assert_allclose(state.ema_params["w"], by_step @ path[1:], rtol=1e-5)


def test_rates_near_zero_keep_their_digits():
    for average, expected in (
        (Average(0.9999), 1e-4),
        (Average(0.9999999), 1e-7),  # 1 - float32(0.9999999) would be 1.19e-7
        (Average(sigma_rel=0.1), -np.expm1((gamma_from_sigma_rel(0.1) + 1) * np.log1p(-1e-6))),
    ):
        np.testing.assert_allclose(ema.rate_at(jnp.int32(999_999), average), expected, rtol=1e-6)


def test_an_average_at_the_papers_decay_forgets_at_its_rate_in_float32():
    params, average = {"w": jnp.ones(())}, {"w": jnp.zeros(())}
    rate = ema.rate_at(jnp.int32(0), Average(0.9999))
    average = jax.lax.fori_loop(
        0, 10_000, lambda _, average: ema.update(average, params, rate), average
    )
    # Every update rounds by half a unit of float32 in the last place: at random, 100 of these in
    # 10,000.
    np.testing.assert_allclose(average["w"], 1 - 0.9999**10_000, rtol=2e-5)


def test_parameters_that_rest_are_a_fixed_point_at_any_rate():
    params = {"w": jnp.float32([1.0, -0.3, 1e-8])}
    for rate in (1e-4, 8e-6, 1 / 3):
        average = jax.lax.fori_loop(
            0, 1000, lambda _, a, r=rate: ema.update(a, params, jnp.float32(r)), params
        )
        np.testing.assert_array_equal(average["w"], params["w"])


def test_several_averages_are_kept_at_once_each_by_its_law(linear, tmp_path):
    averages = {"decay_0.5": Average(0.5), "sigma_rel_0.1": Average(sigma_rel=0.1)}
    state, path = _path(linear, 6, ema=Average(0.9), averages=averages)
    power = [(1 - 1 / n) ** (gamma_from_sigma_rel(0.1) + 1) for n in range(1, 7)]
    np.testing.assert_allclose(state.ema_params["w"], _weighted(path, [0.9] * 6), rtol=1e-6)
    np.testing.assert_allclose(
        state.averages["decay_0.5"]["w"], _weighted(path, [0.5] * 6), rtol=1e-6
    )
    np.testing.assert_allclose(
        state.averages["sigma_rel_0.1"]["w"], _weighted(path, power), rtol=1e-6
    )
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    checkpointer.save(6, state, {"batches": 6}, {})
    checkpointer.wait()
    restored, _ = checkpointer.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_checkpoint_from_before_there_were_several_is_read(linear, tmp_path):
    state, _ = _path(linear, 2)
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    checkpointer.save(
        2,
        {name: field for name, field in state._asdict().items() if name != "averages"},
        {"batches": 2},
        {},
    )
    checkpointer.wait()
    restored, _ = checkpointer.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
