"""The objective of a classifier: its loss by hand, in float64, and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.schedules import make_betas, make_schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.training.classifier_objective import ClassifierAux, classifier_objective

T, B, K = 10, 24, 3  # T no multiple of 4: the quarters are not equally large
SCALE = 100.0  # the network receives 100 t
rng = np.random.default_rng(0)
BATCH = {
    "image": rng.integers(0, 256, (B, 4, 6, 1), np.uint8),
    "label": rng.integers(0, K, B).astype(np.int32),
}
PARAMS = {"w": rng.normal(size=(24, K)).astype(np.float32), "b": np.float32([0.1, -0.2, 0.0])}


def network(params, x_t, time, dropout_keys):
    """Depends on all that a network is given, the dropout keys too."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (K,)))(dropout_keys)
    return (
        x_t.reshape(len(x_t), -1) @ params["w"]
        + 0.01 * time[:, None] * params["b"][None]
        + 0.1 * noise
    )


def build_objective(**changes):
    schedule = make_schedule(
        make_betas("linear", T, beta_start=0.01, beta_end=0.3), time_scale=SCALE
    )
    return classifier_objective(
        network, schedule, **{"timestep_sampling": "uniform", "flip": True} | changes
    )


@pytest.mark.full
def test_the_loss_is_the_cross_entropy_of_a_diffused_image_by_hand():
    key, first = jax.random.key(7), 100  # examples 100..123 of the global batch
    losses, aux = build_objective().loss(PARAMS, (), (), BATCH, key, first + jnp.arange(B))
    alphas_bar = np.cumprod(1 - np.linspace(0.01, 0.3, T))
    flipped = 0
    for i in range(B):
        t_key, eps_key, flip_key, dropout_key = (
            jax.random.fold_in(jax.random.fold_in(key, stream), first + i)
            for stream in (1, 2, 3, 4)
        )
        x_0 = np.float64(BATCH["image"][i]) / 127.5 - 1
        if jax.random.bernoulli(flip_key):
            x_0, flipped = x_0[:, ::-1], flipped + 1
        t = int(jax.random.randint(t_key, (), 0, T))
        x_t = np.sqrt(alphas_bar[t]) * x_0 + np.sqrt(1 - alphas_bar[t]) * np.float64(
            jax.random.normal(eps_key, x_0.shape)
        )
        logits = x_t.ravel() @ np.float64(PARAMS["w"]) + 0.01 * SCALE * t * np.float64(PARAMS["b"])
        logits += 0.1 * np.float64(jax.random.normal(dropout_key, (K,)))
        label = BATCH["label"][i]
        np.testing.assert_allclose(
            losses[i], np.log(np.exp(logits).sum()) - logits[label], rtol=1e-4, atol=1e-5
        )
        assert bool(aux.correct[i]) == (logits.argmax() == label)
        assert int(aux.t[i]) == t
    assert 0 < flipped < B
    assert 0 < int(aux.correct.sum()) < B
    np.testing.assert_array_equal(losses, aux.loss)


def test_antithetic_times_come_in_pairs_and_without_flip_no_image_is_mirrored():
    objective, mirrored = (
        build_objective(timestep_sampling="antithetic", flip=False),
        BATCH["image"][:, :, ::-1],
    )
    losses, aux = objective.loss(PARAMS, (), (), BATCH, jax.random.key(0), jnp.arange(B))
    np.testing.assert_array_equal(aux.t[::2] + aux.t[1::2], T - 1)
    others, _ = objective.loss(
        PARAMS, (), (), BATCH | {"image": mirrored}, jax.random.key(0), jnp.arange(B)
    )
    assert not np.any(np.isclose(losses, others, rtol=1e-6))


def test_metrics_are_means_over_the_batch_and_over_each_quarter_of_the_chain():
    t, loss, correct = (
        rng.integers(0, T, 50),
        rng.normal(size=50).astype(np.float32),
        rng.random(50) < 0.6,
    )
    metrics = build_objective().metrics(
        ClassifierAux(jnp.asarray(t), jnp.asarray(loss), jnp.asarray(correct))
    )
    total, count = metrics["accuracy"]
    assert (float(total), float(count)) == (correct.sum(), 50)
    for name, values in (("accuracy_q", correct), ("loss_q", loss)):
        sums, counts = metrics[name]
        for quarter in range(4):
            inside = (quarter / 4 <= t / T) & (t / T < (quarter + 1) / 4)
            assert counts[quarter] == inside.sum()
            np.testing.assert_allclose(sums[quarter], values[inside].sum(), rtol=1e-5)


def test_it_remembers_nothing():
    objective = build_objective()
    assert objective.init({}) == ()
    assert objective.update((), None) == ()


def test_draws_of_t_for_the_bound_are_refused():
    with pytest.raises(
        UsageError, match=r"timestep sampling of a classifier 'importance'.*antithetic, uniform"
    ):
        build_objective(timestep_sampling="importance")
