"""The objective of a first stage, on networks so small that what they must become is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.distributed.pmap import map_step
from ddpm_jax.errors import UsageError
from ddpm_jax.training.first_stage_objective import FirstStageOptions, first_stage_objective
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.variational import pca
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.observation import FAMILIES

SIDE, LATENTS, N = 2, 2, 128
RNG = np.random.default_rng(0)


def _images():
    mixing = RNG.normal(size=(LATENTS, SIDE * SIDE))
    x = 0.25 * (RNG.normal(size=(N, LATENTS)) @ mixing) + 0.1 * RNG.normal(size=(N, SIDE * SIDE))
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8).reshape(N, SIDE, SIDE, 1)


IMAGES = _images()
X = np.asarray(to_model_range(IMAGES))


def _encode(params, x, keys):
    return (x.reshape(len(x), -1) @ params["encoder"] + params["encoder_bias"][None])[
        :, None, None, :
    ]


def _decode(params, z, keys):
    return (z[:, 0, 0, :] @ params["decoder"] + params["decoder_bias"][None]).reshape(
        -1, SIDE, SIDE, 1
    )


def _encode_moments(params, x, keys):
    log_variance = jnp.broadcast_to(
        params["log_variance"][None, None, None, :], (len(x), 1, 1, LATENTS)
    )
    return jnp.concatenate([_encode(params, x, keys), log_variance], axis=-1)


def _params(**more):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "encoder": 0.3 * jax.random.normal(keys[0], (SIDE * SIDE, LATENTS)),
        "encoder_bias": jnp.zeros(LATENTS),
        "decoder": 0.3 * jax.random.normal(keys[1], (LATENTS, SIDE * SIDE)),
        "decoder_bias": jnp.zeros(SIDE * SIDE),
    } | more


def _loss(objective, params, seed=0):
    """(loss [N], aux) of the whole data before any update."""
    return objective.loss(
        params, (), objective.init(params), {"image": IMAGES}, jax.random.key(seed), jnp.arange(N)
    )


def _trained(objective, params, num_steps, *, learning_rate=1e-2):
    """(parameters, objective state, last metrics) after steps on the whole data."""
    optimizer, rate = optax.adam(learning_rate), lambda step: jnp.float32(learning_rate)
    step = map_step(make_train_step(objective, optimizer, rate, StepOptions()))
    # a copy: the state is donated
    state = create(jax.tree.map(jnp.array, params), optimizer, objective)
    for _ in range(num_steps):
        state, metrics = step(state, {"image": IMAGES[None]}, jax.random.key(1))
    return state.params, state.objective_state, metrics


@pytest.mark.full
def test_a_linear_vae_becomes_the_principal_components():
    """Lucas et al. 2019: its only maxima are those of probabilistic PCA, whose likelihood the bound
    then is."""
    first_stage = FirstStage("vae", _encode_moments, _decode, FAMILIES["gaussian"], scale="shared")
    objective = first_stage_objective(first_stage, FirstStageOptions(), flip=False)
    params = _params(log_variance=jnp.zeros(LATENTS), log_scale=jnp.zeros(()))
    params, _, _ = _trained(objective, params, 1500)
    model = pca.fit(X.reshape(N, -1), LATENTS)
    best = -float(jnp.mean(pca.log_prob(jax.tree.map(np.float32, model), X.reshape(N, -1))))
    losses = jax.lax.map(lambda seed: jnp.mean(_loss(objective, params, seed)[0]), jnp.arange(200))
    bound = SIDE * SIDE * np.float64(losses)
    assert bound.mean() > best - 4 * bound.std() / np.sqrt(len(bound))
    assert bound.mean() == pytest.approx(best, abs=0.03)  # nats; untrained it is 3.9
    assert np.exp(2 * params["log_scale"]) == pytest.approx(model.variance, rel=0.05)


@pytest.mark.full
def test_an_autoencoder_spans_the_principal_components():
    first_stage = FirstStage("ae", _encode, _decode, FAMILIES["gaussian"])
    objective = first_stage_objective(first_stage, FirstStageOptions(), flip=False)
    _, _, metrics = _trained(objective, _params(), 1500)
    model = pca.fit(X.reshape(N, -1), LATENTS)
    # what no LATENTS dimensions can hold
    left = model.variance * (SIDE * SIDE - LATENTS) / (SIDE * SIDE)
    mse = float(metrics["mse"][0] / metrics["mse"][1]) / 127.5**2
    assert mse == pytest.approx(float(left), rel=0.01)
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "nll", "mse"}


def _vq(codebook, **options):
    first_stage = FirstStage(
        "vq", _encode, _decode, FAMILIES["discretized_logistic"], log_scale=-2.0, num_codes=8
    )
    objective = first_stage_objective(
        first_stage, FirstStageOptions(codebook=codebook, **options), flip=False
    )
    return objective, _params(codebook=0.1 * jax.random.normal(jax.random.key(5), (8, LATENTS)))


@pytest.mark.slow
@pytest.mark.parametrize("codebook", ["averages", "gradient"])
def test_a_vq_vae_uses_its_codes_and_reconstructs_by_them(codebook):
    objective, params = _vq(codebook)
    before = objective.metrics(_loss(objective, params)[1])
    trained, state, metrics = _trained(objective, params, 600)
    total = np.mean((IMAGES - IMAGES.mean(axis=0)) ** 2.0)
    # eight codes say at least what the best of the eight-means of one dimension would
    assert float(metrics["mse"][0] / metrics["mse"][1]) < 0.5 * total
    assert float(before["mse"][0] / before["mse"][1]) > 0.9 * total
    assert 5 < float(metrics["perplexity"][0]) <= 8
    if codebook == "averages":
        counts = state.dictionary.counts
        np.testing.assert_allclose(jnp.sum(counts), N, rtol=0.01)
        np.testing.assert_allclose(
            trained["codebook"], state.dictionary.sums / counts[:, None], rtol=1e-3, atol=1e-5
        )
    else:
        assert state.dictionary == ()


@pytest.mark.slow
@pytest.mark.parametrize(("codebook", "has_gradient"), [("averages", False), ("gradient", True)])
def test_only_without_averages_the_codebook_has_a_gradient(codebook, has_gradient):
    objective, params = _vq(codebook)
    gradient = jax.grad(lambda params: jnp.mean(_loss(objective, params)[0]))(params)
    assert np.any(gradient["codebook"]) == has_gradient
    assert np.any(gradient["encoder"])


@pytest.mark.full
def test_dead_codes_are_restarted_where_asked():
    objective, params = _vq("averages", restart_below=0.5, codebook_decay=0.9)
    params["codebook"] = params["codebook"].at[4:].set(50.0)
    trained, _, metrics = _trained(objective, params, 60, learning_rate=1e-4)
    assert np.all(np.abs(trained["codebook"]) < 10)
    assert float(metrics["perplexity"][0]) > 4.5
    objective, _ = _vq("averages", codebook_decay=0.9)
    _, _, metrics = _trained(objective, params, 60, learning_rate=1e-4)
    assert float(metrics["perplexity"][0]) <= 4.01


@pytest.mark.full
def test_the_loss_of_a_vae_is_its_terms_by_hand():
    first_stage = FirstStage(
        "vae", _encode_moments, _decode, FAMILIES["discretized_logistic"], log_scale=-1.0
    )
    options = FirstStageOptions(beta=3.0, kl_warmup_steps=10, free_nats=0.2)
    objective = first_stage_objective(first_stage, options, flip=False)
    params = _params(log_variance=jnp.float32([-0.3, 0.01]))
    state = objective.init(params)._replace(step=jnp.int32(5))
    loss, aux = objective.loss(
        params, (), state, {"image": IMAGES}, jax.random.key(0), jnp.arange(N)
    )
    mean = np.asarray(_encode(params, X, None), np.float64)[:, 0, 0]
    log_variance = np.float64(params["log_variance"])
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    dims = SIDE * SIDE
    np.testing.assert_allclose(aux.kl, kl.sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, aux.nll + 1.5 * np.maximum(kl, 0.2).sum(-1) / dims, rtol=1e-4)
    np.testing.assert_allclose(aux.bits, (aux.nll + kl.sum(-1) / dims) / np.log(2), rtol=1e-4)
    assert objective.update(state, aux).step == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": -1.0}, r"beta is -1\.0: it must be at least 0"),
        ({"codebook_decay": 1.0}, r"codebook_decay is 1\.0: it must be in \[0, 1\)"),
        ({"codebook": "sgd"}, r"way to learn a codebook 'sgd'.*averages, gradient"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    first_stage = FirstStage("vq", _encode, _decode, FAMILIES["gaussian"], num_codes=8)
    with pytest.raises(UsageError, match=words):
        first_stage_objective(first_stage, FirstStageOptions(**options), flip=False)
