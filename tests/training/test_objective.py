"""The objective of diffusion: algorithm 1 by hand, its metrics, and the draws of t by
importance."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.augmentation import augment, augmentation_labels, draw_augmentation
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.diffusion.timesteps import HISTORY, LossHistory, importance_probabilities
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import example_keys
from ddpm_jax.training.objective import (
    ByTime,
    DiffusionAux,
    Drawing,
    diffusion_objective,
    loss_over_time,
)

T = 10  # no multiple of 4: the quartiles are not equally large
B = 24


def _network(params, x_t, time, condition, dropout_keys):
    """Depends on all that a network is given, the dropout keys too."""
    noise = jax.vmap(lambda key: jax.random.normal(key, x_t.shape[1:]))(dropout_keys)
    return params["a"] * x_t + params["b"] * time[:, None, None, None] + params["c"] * noise


PARAMS = {"a": jnp.float32(0.5), "b": jnp.float32(-0.1), "c": jnp.float32(0.3)}


def _objective(
    *,
    parameterization="eps",
    variance="fixed_large",
    loss="simple",
    weighting="uniform",
    flip=True,
    **changes,
):
    chain = Chain(make_betas("linear", T, beta_start=0.01, beta_end=0.3))
    process = make_process(chain, parameterization, variance)
    loss = make_loss(loss, weighting, variance=process.variance)
    return diffusion_objective(
        _network, process, loss, Drawing(flip), **{"timestep_sampling": "uniform"} | changes
    )


def _batch():
    return {"image": np.random.default_rng(0).integers(0, 256, (B, 4, 6, 1), np.uint8)}


@pytest.mark.full
def test_the_loss_is_algorithm_1_by_hand():
    key, first = jax.random.key(7), 100  # examples 100..123 of the global batch
    objective = _objective()
    losses, aux = objective.loss(
        PARAMS, (), objective.init(PARAMS), _batch(), key, first + jnp.arange(B)
    )

    alphas_bar = np.cumprod(1 - np.linspace(0.01, 0.3, T))
    flipped = 0
    for i in range(B):
        t_key, eps_key, flip_key, dropout_key = (
            jax.random.fold_in(jax.random.fold_in(key, stream), first + i)
            for stream in (1, 2, 3, 4)
        )
        x_0 = np.float64(_batch()["image"][i]) / 127.5 - 1
        if jax.random.bernoulli(flip_key):
            x_0, flipped = x_0[:, ::-1], flipped + 1
        t = int(jax.random.randint(t_key, (), 0, T))
        eps = np.float64(jax.random.normal(eps_key, x_0.shape))
        x_t = np.sqrt(alphas_bar[t]) * x_0 + np.sqrt(1 - alphas_bar[t]) * eps
        output = 0.5 * x_t - 0.1 * t + 0.3 * np.float64(jax.random.normal(dropout_key, x_0.shape))
        assert int(aux.t[i]) == t
        np.testing.assert_allclose(losses[i], np.mean((eps - output) ** 2), rtol=1e-5)
    assert 0 < flipped < B
    assert len(set(np.asarray(aux.t))) > T // 2


def test_without_flip_no_image_is_mirrored():
    objective, mirrored = _objective(flip=False), {"image": _batch()["image"][:, :, ::-1]}
    key, index = jax.random.key(0), jnp.arange(B)
    never, at_random = (
        [loss(PARAMS, (), (), images, key, index)[0] for images in (_batch(), mirrored)]
        for loss in (jax.jit(objective.loss), jax.jit(_objective().loss))
    )
    on, either = never[0], at_random
    assert not np.any(np.isclose(on, never[1], rtol=1e-6))
    assert np.all(np.isclose(on, either[0]) | np.isclose(on, either[1]))


def test_metrics_by_quartile_of_t_are_means_over_its_examples():
    t = np.random.default_rng(1).integers(0, T, 50)
    loss = np.random.default_rng(2).normal(size=50).astype(np.float32)
    aux = DiffusionAux(*(jnp.asarray(x) for x in (t, loss, 2 * loss, 3 * loss)))
    sums, counts = _objective().metrics(aux)["loss_q"]
    for quartile in range(4):
        inside = (quartile / 4 <= t / T) & (t / T < (quartile + 1) / 4)
        assert counts[quartile] == inside.sum()
        np.testing.assert_allclose(sums[quartile], loss[inside].sum(), rtol=1e-5)


@pytest.mark.parametrize(("num_timesteps", "bars"), [(1000, 30), (40, 30), (7, 7)])
def test_the_bars_over_t_are_sums_over_equal_parts_of_the_chain(num_timesteps, bars):
    t = np.random.default_rng(1).integers(0, num_timesteps, 200)
    loss = np.random.default_rng(2).uniform(size=200).astype(np.float32)
    found = loss_over_time(jnp.asarray(t), jnp.asarray(loss), num_timesteps)["loss_by_t"]
    # t/T of a boundary is rounded to float64; a hundredth of a step moves none across it that is
    # not on it.
    counts, edges = np.histogram((t + 0.01) / num_timesteps, bars, (0, 1))
    sums, _ = np.histogram((t + 0.01) / num_timesteps, bars, (0, 1), weights=loss)
    assert isinstance(found, ByTime)
    assert len(edges) == len(found.sum) + 1
    np.testing.assert_array_equal(found.count, counts)
    np.testing.assert_allclose(found.sum, sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"loss_q", "loss_by_t"}),
        ({"weighting": "min_snr"}, {"loss_q", "loss_by_t", "simple"}),
        ({"loss": "vlb"}, {"loss_q", "loss_by_t", "simple", "vlb"}),
    ],
)
def test_what_differs_from_the_loss_is_reported_beside_it(changes, names):
    aux = DiffusionAux(jnp.arange(4), jnp.ones(4), 2 * jnp.ones(4), 3 * jnp.ones(4))
    metrics = _objective(**changes).metrics(aux)
    assert set(metrics) == names
    for name, value in (("simple", 8.0), ("vlb", 12.0)):
        if name in names:
            assert tuple(map(float, metrics[name])) == (value, 4.0)


def _full_history():
    """Every t has its losses, and they are far from equal."""
    losses = np.linspace(0.1, 3, T)[:, None] * np.linspace(0.5, 1.5, HISTORY)[None, :]
    return LossHistory(jnp.asarray(losses, jnp.float32), jnp.full((T,), HISTORY, jnp.int32))


@pytest.mark.slow
def test_importance_weights_leave_the_expected_loss_unchanged():
    count, index = 20_000, jnp.arange(20_000)
    batch = {"image": np.full((count, 1, 1, 1), 200, np.uint8)}
    uniform, importance = (
        _objective(flip=False),
        _objective(flip=False, timestep_sampling="importance"),
    )
    params = PARAMS | {"b": jnp.float32(-0.3)}  # a loss that grows with t, as the history does
    reference, _ = jax.jit(uniform.loss)(params, (), (), batch, jax.random.key(0), index)
    weighted, aux = jax.jit(importance.loss)(
        params, (), _full_history(), batch, jax.random.key(1), index
    )

    def error(x):
        return np.std(x) / np.sqrt(count)

    difference = float(np.mean(weighted) - np.mean(reference))
    assert abs(difference) < 4 * np.hypot(error(weighted), error(reference))
    biased = float(np.mean(aux.loss) - np.mean(reference))
    assert abs(biased) > 8 * np.hypot(error(aux.loss), error(reference)), (
        "the draws are not uniform"
    )
    weights = 1 / (T * np.asarray(importance_probabilities(_full_history()))[np.asarray(aux.t)])
    np.testing.assert_allclose(weighted, weights * aux.loss, rtol=1e-5)


@pytest.mark.full
def test_the_history_holds_the_last_unweighted_losses_of_every_t():
    objective = _objective(timestep_sampling="importance")
    state, expected = (
        objective.init(PARAMS),
        collections.defaultdict(lambda: collections.deque(maxlen=HISTORY)),
    )
    for n in range(20):
        _, aux = objective.loss(PARAMS, (), state, _batch(), jax.random.key(n), jnp.arange(B))
        state = objective.update(state, aux)
        for t, loss in zip(np.asarray(aux.t), np.asarray(aux.loss), strict=True):
            expected[int(t)].append(loss)
    assert all(count >= HISTORY for count in state.counts)
    for t in range(T):
        np.testing.assert_array_equal(np.sort(state.losses[t]), np.sort(expected[t]))


def test_other_draws_of_t_carry_nothing():
    for sampling in ("uniform", "antithetic", "low_discrepancy"):
        objective = _objective(timestep_sampling=sampling, batch_size=B)
        assert objective.init(PARAMS) == ()
        loss = jax.jit(objective.loss)
        losses, aux = loss(PARAMS, (), (), _batch(), jax.random.key(0), jnp.arange(B))
        np.testing.assert_array_equal(losses, aux.loss)
        assert objective.update((), aux) == ()
        if sampling == "antithetic":
            np.testing.assert_array_equal(aux.t[::2] + aux.t[1::2], T - 1)
        if sampling == "low_discrepancy":
            counts = np.bincount(aux.t, minlength=T)
            assert counts.max() - counts.min() <= 1  # even over the batch


def test_an_unknown_draw_of_t_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'importance'"):
        _objective(timestep_sampling="importence")


@pytest.mark.full
def test_the_network_sees_augmented_images_and_is_told_how():
    """A network that knows x_0 has no loss if x_t is of the images augmented by the same draws."""
    key, index, batch = jax.random.key(3), 7 + jnp.arange(4), _batch()
    batch = {"image": batch["image"][:4]}
    drawn = draw_augmentation(example_keys(key, "augment", index), 0.5)
    x_0 = augment(to_model_range(batch["image"]), drawn)

    def network(params, x_t, time, condition, dropout_keys):
        told = jnp.all(condition.augment == augmentation_labels(drawn))
        return jnp.where(told, x_0, jnp.nan)

    chain = Chain(make_betas("linear", T, beta_start=0.01, beta_end=0.3))
    process = make_process(chain, "x_0", "fixed_large")
    objective = diffusion_objective(
        network,
        process,
        make_loss("simple", variance=process.variance),
        Drawing(flip=False, augment_probability=0.5),
        timestep_sampling="uniform",
    )
    losses, _ = jax.jit(objective.loss)({}, (), (), batch, key, index)
    np.testing.assert_allclose(losses, 0, atol=1e-8)
    assert np.abs(x_0 - to_model_range(batch["image"])).max() > 0.1
