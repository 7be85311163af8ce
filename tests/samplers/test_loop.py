"""The scan: one program for any number of steps; frames; images that depend on (seed, i) alone."""

from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, make_schedule, spaced_timesteps
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import INITIAL, SAMPLING, image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import Sampler, sample

SHAPE = (4, 4, 1)


def chain(steps, **options):
    """(x_T, keys) -> Samples of a network that mixes pixels and channels, `steps` of 1000."""
    schedule = make_schedule(make_betas("linear", 1000), timesteps=spaced_timesteps(1000, steps))
    kernel = 0.3 * jax.random.normal(jax.random.key(7), (3, 3, 1, 1))

    def network(x_t, time):
        h = jax.lax.conv_general_dilated(
            x_t, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(h + 0.001 * time[:, None, None, None])

    denoiser = make_process(Chain(make_betas("linear", 1000)), "eps", "fixed_large").denoiser(
        network, schedule, clip="static"
    )
    return lambda x_T, keys: sample(denoiser, ancestral(schedule), x_T, keys, **options)


def start(index, seed=0):
    keys = image_keys(jax.random.key(seed), jnp.asarray(index))
    return initial_noise(keys, SHAPE), keys


def equations(jaxpr):
    """All equations of a program, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_any_number_of_steps_is_the_same_program_with_one_scan():
    programs = {}
    for steps in (5, 50, 1000):
        found = list(equations(jax.make_jaxpr(chain(steps))(*start(range(2))).jaxpr))
        scans = [eqn for eqn in found if eqn.primitive.name == "scan"]
        assert [eqn.params["length"] for eqn in scans] == [steps]
        programs[steps] = [eqn.primitive.name for eqn in found]
    assert programs[5] == programs[50] == programs[1000]


def test_a_chain_of_a_thousand_steps_is_traced_once():
    traces = []
    schedule = make_schedule(make_betas("linear", 1000))

    def network(x_t, _):
        traces.append(x_t.shape)
        return 0.1 * x_t

    denoiser = make_process(Chain(make_betas("linear", 1000)), "eps", "fixed_small").denoiser(
        network, schedule, clip="static"
    )
    run = jax.jit(lambda x_T, keys: sample(denoiser, ancestral(schedule), x_T, keys).x_0)
    run(*start(range(2)))
    run(*start(range(5, 7), seed=1))
    assert traces == [(2, *SHAPE)]


def test_the_keys_follow_the_documented_derivation():
    x_T, keys = start([3, 8], seed=5)
    for row, i in enumerate((3, 8)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), SAMPLING), i)
        assert keys[row] == key
        # The uint32 constant must not be lost on the way through vmap.
        expected = jax.random.normal(jax.random.fold_in(key, np.uint32(INITIAL)), SHAPE)
        np.testing.assert_array_equal(x_T[row], expected)


@pytest.mark.slow
def test_image_i_is_the_same_in_any_batch_and_any_order():
    run = jax.jit(lambda x_T, keys: chain(50)(x_T, keys).x_0)
    together = np.asarray(run(*start(range(8))))
    for index in ([5], [7, 0, 5], list(range(5, 12))):
        shared = [i for i in index if i < 8]
        found = np.asarray(run(*start(index)))[: len(shared)]
        # The noise is the same to the bit. A convolution may sum in another order for another batch
        # size: float32 rounding, 1e-7 a step over 50 steps.
        np.testing.assert_allclose(found, together[shared], rtol=0, atol=1e-5)


def test_different_images_and_seeds_are_different():
    x_T, _ = start(range(100))
    correlation = np.corrcoef(
        np.concatenate([x_T, start(range(100), seed=1)[0]]).reshape(200, -1).T
    )
    assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(200)
    assert len(np.unique(np.concatenate([x_T, start(range(100), seed=1)[0]]))) == 3200


@pytest.mark.full
def test_initial_noise_does_not_depend_on_the_number_of_steps():
    for steps in (2, 20):
        x_T, keys = start(range(2))
        np.testing.assert_array_equal(
            chain(steps, num_frames=2)(x_T, keys).frames_x_t[0], start(range(2))[0]
        )


class Trace(NamedTuple):
    x_t: jax.Array
    history: jax.Array  # the last two x_t


def counting_sampler(num_rows):
    """A multistep sampler whose x_t after row i is i+1 and whose prediction there is -i.

    It keeps a history.
    """

    def init(x_T):
        return Trace(x_T, jnp.stack([x_T, x_T]))

    def step(denoiser, state, row, noise):
        x_next = jnp.zeros_like(state.x_t) + row["after"]
        prediction = denoiser(state.x_t, jnp.zeros(state.x_t.shape[:1], int))
        prediction = prediction._replace(x_0=jnp.zeros_like(state.x_t) - row["before"])
        return Trace(x_next, jnp.stack([state.history[1], x_next])), prediction

    rows = {
        "before": np.arange(num_rows, dtype=np.float32),
        "after": np.arange(1, num_rows + 1, dtype=np.float32),
    }
    schedule = make_schedule(make_betas("linear", 10))
    return Sampler(schedule, rows, init, step, evaluations=num_rows)


@pytest.mark.parametrize(
    ("num_rows", "num_frames"), [(10, 2), (10, 3), (10, 11), (7, 4), (1, 2), (1000, 9)]
)
def test_frames_are_evenly_spaced_from_the_noise_to_the_image(num_rows, num_frames):
    schedule = make_schedule(make_betas("linear", 10))
    denoiser = make_process(Chain(make_betas("linear", 10)), "x_0", "fixed_small").denoiser(
        lambda x, _: x, schedule, clip="none"
    )
    x_T, keys = start(range(2))
    samples = sample(denoiser, counting_sampler(num_rows), x_T, keys, num_frames=num_frames)
    moments = np.round(np.linspace(0, num_rows, num_frames))
    np.testing.assert_array_equal(samples.frames_x_t[0], x_T)
    np.testing.assert_array_equal(samples.frames_x_t[1:, 0, 0, 0, 0], moments[1:])
    np.testing.assert_array_equal(samples.frames_x_0[:-1, 1, 0, 0, 0], -moments[:-1])
    np.testing.assert_array_equal(samples.x_0, np.full_like(x_T, num_rows))
    np.testing.assert_array_equal(samples.frames_x_0[-1], samples.x_0)


def test_a_frame_pairs_x_t_with_the_x_0_predicted_from_it():
    schedule = make_schedule(make_betas("linear", 20))
    denoiser = make_process(Chain(make_betas("linear", 20)), "x_0", "fixed_small").denoiser(
        lambda x, time: jnp.tanh(x + time[:, None, None, None]), schedule, clip="none"
    )
    samples = sample(denoiser, ancestral(schedule), *start(range(3)), num_frames=6)
    for x_t, x_0, moment in zip(
        samples.frames_x_t[:-1], samples.frames_x_0, (0, 4, 8, 12, 16), strict=False
    ):
        np.testing.assert_allclose(x_0, np.tanh(x_t + 19 - moment), rtol=1e-5)
    # The last step adds no noise, so what it predicts from the last x_t is the sample itself.
    np.testing.assert_array_equal(samples.frames_x_0[-1], samples.x_0)


@pytest.mark.full
def test_frames_change_nothing():
    x_T, keys = start(range(4))
    plain = jax.jit(chain(30))(x_T, keys)
    assert plain.frames_x_t is None
    assert plain.frames_x_0 is None
    watched = jax.jit(chain(30, num_frames=5))(x_T, keys)
    # fused otherwise: float32 rounding
    np.testing.assert_allclose(watched.x_0, plain.x_0, rtol=0, atol=1e-6)


def test_a_chain_has_no_callback_in_its_program():
    names = {
        eqn.primitive.name for eqn in equations(jax.make_jaxpr(chain(20))(*start(range(2))).jaxpr)
    }
    assert not any("callback" in name or name == "cond" for name in names)


@pytest.mark.parametrize("num_frames", [-1, 1, 12])
def test_a_number_of_frames_the_chain_has_not_is_refused(num_frames):
    with pytest.raises(
        UsageError, match=f"num_frames is {num_frames}: a chain of 10 rows shows 2 to 11 frames"
    ):
        chain(10, num_frames=num_frames)(*start(range(2)))
