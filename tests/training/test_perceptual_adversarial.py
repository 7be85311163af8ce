"""Autoencoder and discriminator in one step: each has the gradient of its own loss, λ is that of
the whole batch."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.training.perceptual_adversarial import PerceptualAdversarial

from . import adversarial_on_devices as toy

PROGRAM = pathlib.Path(toy.__file__)
OBJECTIVE = toy.build_objective()
LOSS = jax.jit(OBJECTIVE.loss)
INDEX = jnp.arange(toy.BATCH)
X = np.asarray(to_model_range(toy.BATCHES[0]["image"]))
WEIGHT = 1.7  # λ
DIMS = toy.SIDE**2


def state_at(step):
    state = OBJECTIVE.init(toy.PARAMS)
    return state._replace(step=jnp.int32(step), adaptive_weight=jnp.float32(WEIGHT))


@functools.partial(jax.jit, static_argnums=0)
def compute_gradient(objective, state, params):
    def mean_loss(params):
        loss, _ = objective.loss(
            params, toy.FROZEN, state, toy.BATCHES[0], jax.random.key(0), INDEX
        )
        return jnp.mean(loss)

    return jax.grad(mean_loss)(params)


def shown_by(params):
    """The reconstructions and their negative log-likelihood per dimension, by hand."""
    mean, log_scale = toy.decode(params, toy.encode(params, X, None), None), params["log_scale"]
    nll = 0.5 * jnp.square((X - mean) * jnp.exp(-log_scale)) + log_scale + 0.5 * np.log(2 * np.pi)
    return jnp.clip(mean, -1, 1), jnp.mean(nll)


def reconstruction_loss(params):
    shown, nll = shown_by(params)
    return nll + 0.7 * jnp.mean(toy.distance(toy.FROZEN, X, shown))


def generator_loss(params):
    return -jnp.mean(toy.discriminate(toy.PARAMS["discriminator"], shown_by(params)[0]))


def critic_loss(critic):
    real, fake = (toy.discriminate(critic, images) for images in (X, shown_by(toy.PARAMS)[0]))
    return 0.5 * (jnp.mean(jnp.maximum(0, 1 - real)) + jnp.mean(jnp.maximum(0, 1 + fake)))


def without_critic(tree):
    return {name: leaves for name, leaves in tree.items() if name != "discriminator"}


def assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@pytest.mark.parametrize("step", [toy.START - 1, toy.START, toy.START + 5])
def test_each_player_has_the_gradient_of_its_own_loss_alone(step):
    """Written down here once more, term by term; before the start only the reconstruction
    counts."""
    gradient = compute_gradient(OBJECTIVE, state_at(step), toy.PARAMS)
    begun = step >= toy.START

    def own(params):
        return reconstruction_loss(params) + (
            0.8 * WEIGHT * generator_loss(params) if begun else 0.0
        )

    expected = jax.jit(jax.grad(own))(without_critic(toy.PARAMS))
    assert_close(without_critic(gradient), expected, rtol=1e-4, atol=1e-6)
    of_critic = jax.jit(jax.grad(critic_loss))(toy.PARAMS["discriminator"])
    assert_close(
        gradient["discriminator"],
        jax.tree.map(lambda g: begun * g, of_critic),
        rtol=1e-4,
        atol=1e-6,
    )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves((expected, of_critic)))


@pytest.mark.full
def test_the_next_weight_is_that_of_the_whole_batch_however_it_is_split():
    """|∇ L_rec| / |∇ L_G| by the last layer, from gradients of the means over the batch."""

    def by_last_layer(loss):
        return np.linalg.norm(
            np.float64(jax.jit(jax.grad(loss))(toy.PARAMS)["decoder"]["conv_out"]["kernel"])
        )

    expected = by_last_layer(reconstruction_loss) / (by_last_layer(generator_loss) + 1e-4)
    assert 0.1 < expected < 1000
    for parts in (1, 4):
        split = [
            (toy.BATCHES[0]["image"][rows], INDEX[rows])
            for rows in np.split(np.arange(toy.BATCH), parts)
        ]
        state = state_at(0)  # measured from the first step on, before it is needed
        aux = [
            LOSS(toy.PARAMS, toy.FROZEN, state, {"image": images}, jax.random.key(0), index)[1]
            for images, index in split
        ]
        gathered = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *aux)
        np.testing.assert_allclose(
            OBJECTIVE.update(state, gathered).adaptive_weight, expected, rtol=1e-4
        )


def test_the_loss_is_the_sum_of_its_terms_and_the_records_have_each():
    state = state_at(toy.START)
    loss, aux = LOSS(toy.PARAMS, toy.FROZEN, state, toy.BATCHES[0], jax.random.key(0), INDEX)
    means = {name: float(total / count) for name, (total, count) in OBJECTIVE.metrics(aux).items()}
    shown, nll = shown_by(toy.PARAMS)
    real, fake = (toy.discriminate(toy.PARAMS["discriminator"], images) for images in (X, shown))
    expected = {
        "nll": nll,
        "mse": np.mean(np.square(127.5 * (shown - X))),
        "perceptual": jnp.mean(toy.distance(toy.FROZEN, X, shown)),
        "discriminator_loss": critic_loss(toy.PARAMS["discriminator"]),
        "generator_loss": -np.mean(fake),
        "logit_real": np.mean(real),
        "logit_fake": np.mean(fake),
        "adaptive_weight": WEIGHT,
    }
    assert means == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    total = (
        reconstruction_loss(toy.PARAMS)
        + 0.8 * WEIGHT * generator_loss(toy.PARAMS)
        + expected["discriminator_loss"]
    )
    assert float(jnp.mean(loss)) == pytest.approx(float(total), rel=1e-5)


def test_a_perceptual_term_alone_needs_no_discriminator():
    objective = toy.build_objective(
        PerceptualAdversarial(perceptual_weight=0.7, distance=toy.distance)
    )
    params = without_critic(toy.PARAMS)
    state = objective.init(params)
    assert_close(
        compute_gradient(objective, state, params),
        jax.jit(jax.grad(reconstruction_loss))(params),
        rtol=1e-4,
        atol=1e-6,
    )
    assert objective.averaged(params) == params


@pytest.mark.full
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_each_player_has_its_own_optimiser_and_its_own_norm(clip_norm):
    gradients = jax.tree.map(lambda leaf: np.float32(0.1) * leaf, toy.PARAMS)
    optimizer = toy.build_optimizer(clip_norm)
    updates, _ = optimizer.update(gradients, optimizer.init(toy.PARAMS), toy.PARAMS)

    def alone(gradients, rate):
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        assert not clip_norm or scale < 0.9, "the test clips"
        return jax.tree.map(lambda leaf: -rate * scale * leaf, gradients)

    expected = alone(without_critic(gradients), 0.1) | {
        "discriminator": alone(gradients["discriminator"], 0.3)
    }
    assert_close(updates, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def alone():
    """A run on this process's one device."""
    return toy.run("pmap")


@pytest.mark.slow
def test_one_device_and_eight_train_alike_in_parts_and_under_fsdp(alone, tmp_path, run_python):
    """The weight of each step, both losses and all parameters, of examples in two parts on each
    device of eight."""
    run_python(PROGRAM, tmp_path / "results.npz", devices=8)
    results = dict(np.load(tmp_path / "results.npz"))
    assert alone["adaptive_weight"][0] == 0, "not measured yet"
    assert np.all(alone["adaptive_weight"][1:] > 0.1)
    for name in ("pmap", "fsdp"):
        for key, expected in alone.items():
            # float32 sums in another order
            np.testing.assert_allclose(
                results[f"{name}/{key}"], expected, rtol=2e-4, atol=1e-5, err_msg=f"{name}/{key}"
            )


@pytest.mark.full
def test_averages_leave_the_discriminator_out_and_a_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    tmp_path,
):
    """Adam for both, so that there are moments of both players to save."""
    parallelism, objective = PARALLEL["pmap"], OBJECTIVE
    optimizer = toy.for_players(
        {"discriminator": optax.adam(1e-2, b1=0.5, b2=0.9)}, optax.adam(1e-3), clip_norm=1.0
    )
    step = toy.stepper(parallelism, optimizer, objective, averages={"other": toy.StepOptions().ema})
    saver, saved_at = Checkpointer(tmp_path, keep_last=1), toy.START + 1

    def advance(state, steps):
        for n in steps:
            state, _ = step(state, parallelism.to_devices([toy.BATCHES[n]]), jax.random.key(0))
        return state

    state = advance(
        toy.new_state(parallelism, optimizer, objective, averages=("other",)), range(saved_at)
    )
    saver.save(saved_at, state, {"batches": saved_at}, {})
    saver.wait()
    template = jax.eval_shape(lambda state: state, state)
    whole = jax.tree.map(np.asarray, advance(state, range(saved_at, toy.STEPS)))
    restored, _ = saver.restore(template)
    saver.close()
    resumed = advance(parallelism.place(restored), range(saved_at, toy.STEPS))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, resumed), whole)
    moments = [
        leaf
        for leaf in jax.tree.leaves(whole.opt_state)
        if leaf.shape == toy.PARAMS["discriminator"]["out"].shape
    ]
    assert len(moments) == 2
    assert all(np.any(leaf) for leaf in moments)
    for averages in (whole.ema_params, whole.averages["other"]):
        assert averages.keys() == without_critic(toy.PARAMS).keys()
    assert whole.params.keys() == toy.PARAMS.keys()
    np.testing.assert_array_equal(whole.frozen, toy.FROZEN)


def test_a_first_stage_without_these_terms_remembers_no_more_than_before_there_were_any():
    """Or checkpoints of that time could not be read."""
    state = toy.build_objective(PerceptualAdversarial()).init(without_critic(toy.PARAMS))
    assert state._fields == ("step", "dictionary")
