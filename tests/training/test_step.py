"""One update on one device, on a linear model: gradient, accumulation, clipping, donation,
compilation."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.distributed.pmap import shard
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import base_key
from ddpm_jax.training.ema import Average
from ddpm_jax.training.optimizer import make_learning_rate
from ddpm_jax.training.step import StepOptions, make_train_step


def _sgd_gradient(linear, batch, **options):
    """The gradient that reaches the optimiser: SGD at rate 1 subtracts it, so no scale is
    hidden."""
    state, step = linear.start(optax.sgd(1.0), **options)
    state, metrics = linear.step(step, state, batch)
    return (
        jax.tree.map(lambda before, after: before - after, linear.params(), state.params),
        state,
        metrics,
    )


def _numpy_gradient(params, batch):
    """d mean((x w + b - y)²), in float64."""
    x, y = np.float64(batch["x"]), np.float64(batch["y"])
    residual = x @ np.float64(params["w"]) + float(params["b"]) - y
    return {"w": 2 * residual @ x / len(y), "b": 2 * residual.mean()}


def _norm(gradient):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in gradient.values()))


def _assert_close(tree, expected, rtol=1e-5):
    # 1e-5: some tens of float32 operations on numbers of order 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), tree, expected
    )


def test_gradient_is_that_of_the_mean_loss_over_the_batch(linear):
    batch = linear.batch(12)
    gradient, state, metrics = _sgd_gradient(linear, batch)
    expected = _numpy_gradient(linear.params(), batch)
    _assert_close(gradient, expected)
    residual = batch["x"] @ np.asarray(linear.params()["w"]) + 0.25 - batch["y"]
    np.testing.assert_allclose(metrics["loss"], np.mean(residual**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], _norm(expected), rtol=1e-5)
    assert int(state.step) == 1


@pytest.mark.full
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulating_in_parts_gives_the_same_gradient_from_the_same_draws(linear, parts):
    objective = linear.objective(dropout=0.5)
    whole, whole_state, whole_metrics = _sgd_gradient(linear, linear.batch(12), objective=objective)
    gradient, state, metrics = _sgd_gradient(
        linear, linear.batch(12), objective=objective, accumulate_steps=parts
    )
    _assert_close(gradient, whole)
    # Per example: masks drawn by position in a part instead of the batch would show here.
    np.testing.assert_allclose(state.objective_state, whole_state.objective_state, rtol=1e-6)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-5)


def test_every_step_draws_anew_and_the_same_step_the_same(linear):
    objective = linear.objective(dropout=0.5)
    state, step = linear.start(optax.sgd(0.0), objective=objective)
    drawn = []
    for _ in range(2):
        state, _ = linear.step(step, state, linear.batch(12))
        drawn.append(np.asarray(state.objective_state))
    assert not np.array_equal(*drawn)
    for seed, same in ((0, True), (1, False)):
        state, _ = linear.start(optax.sgd(0.0), objective=objective)
        state, _ = linear.step(step, state, linear.batch(12), seed=seed)
        assert np.array_equal(state.objective_state, drawn[0]) == same


@pytest.mark.parametrize("scope", ["average", "replica"])
def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_left_alone(linear, scope):
    batch = linear.batch(12)
    expected = _numpy_gradient(linear.params(), batch)
    norm = _norm(expected)
    clipped, _, metrics = _sgd_gradient(linear, batch, clip_norm=norm / 4, clip_scope=scope)
    _assert_close(clipped, {name: leaf / 4 for name, leaf in expected.items()})
    np.testing.assert_allclose(
        metrics["grad_norm"], norm, rtol=1e-5, err_msg="the norm is that before clipping"
    )
    untouched, _, _ = _sgd_gradient(linear, batch, clip_norm=4 * norm, clip_scope=scope)
    _assert_close(untouched, expected)


def test_the_first_update_under_warm_up_changes_nothing_but_the_moments(linear):
    rate = make_learning_rate(0.1, warmup_steps=4, decay="constant", num_steps=10)
    optimizer = optax.adam(rate)
    state, _ = linear.start(optimizer)
    step = make_train_step(linear.objective(), optimizer, rate, StepOptions())
    step = jax.pmap(step, axis_name="devices", in_axes=(None, 0, None), out_axes=(None, None))
    rates = []
    for n in range(6):
        state, metrics = linear.step(step, state, linear.batch(12))
        rates.append(float(metrics["learning_rate"]))
        moved = not np.array_equal(state.params["w"], linear.params()["w"])
        assert moved == (n > 0)
        assert np.any(state.opt_state[0].mu["w"])
    np.testing.assert_allclose(rates, [0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)


def test_the_state_is_donated_stays_unstacked_and_compiles_once(linear, caplog):
    # Warnings are errors here: a donated buffer that cannot be used would fail the test.
    optimizer = optax.adam(0.1)
    state, step = linear.start(optimizer)
    shapes = jax.tree.map(jnp.shape, state.params)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        first, _ = linear.step(step, state, linear.batch(12))
        assert any("Compiling" in record.message for record in caplog.records)
        assert all(
            leaf.is_deleted()
            for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state))
        )
        batch, key = linear.batch(12), base_key(0)
        jax.block_until_ready(key)
        state = linear.step(step, first, batch)[0]
        caplog.clear()
        for _ in range(2):
            state, _ = linear.step(step, state, batch)
        compiled = [record.message for record in caplog.records if "Compiling" in record.message]
    assert not compiled
    assert jax.tree.map(jnp.shape, state.params) == shapes


def test_the_new_state_is_written_over_the_old_one(linear):
    # Alias of XLA's program: the buffer of an argument that holds this result, all by leaf.
    state, step = linear.start(optax.adam(0.1), averages={"slow": Average(decay=0.999)})
    arguments = state, shard(linear.batch(12)), base_key(0)
    program = step.__wrapped__.lower(*arguments).compile().as_text()
    header = program.splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header.split("input_output_alias=")[1])
    leaves = range(len(jax.tree.leaves(state)))
    assert [(int(result), int(argument)) for result, argument in aliases] == [
        (leaf, leaf) for leaf in leaves
    ]


def test_options_that_cannot_be_are_refused(linear):
    for options, sentence in (
        (StepOptions(clip_scope="replicas"), "Did you mean 'replica'"),
        (StepOptions(accumulate_steps=0), "accumulate_steps is 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            make_train_step(
                linear.objective(), optax.sgd(0.1), optax.constant_schedule(0.1), options
            )
