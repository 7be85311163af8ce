"""Requirements on every sampler.

A new one needs a line in SAMPLERS and a line in CASES, or the first test here fails.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import from_function
from ddpm_jax.diffusion.mixture import exact_denoiser
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.samplers.loop import advance, begin, finish, sample
from ddpm_jax.samplers.registry import SAMPLERS, default_options, make_sampler
from ddpm_jax.samplers.spacing import SPACINGS, space


class Case(NamedTuple):
    """What is claimed of a sampler."""

    evaluations: str  # as docs/samplers.md has it, in N
    order: int | None  # of convergence to the probability flow; None: it adds noise
    # with which it has this order, or adds this noise
    options: Mapping[str, Any] = MappingProxyType({})
    others: tuple = ()  # other values of its options that must not need another program


CASES = {
    "ancestral": Case("N", None),
    "ddim": Case("N", 1, others=({"eta": 0.3}, {"eta": 1.0})),
    "euler": Case("N", 1),
    "mean_flow": Case("N", 1),  # of a velocity at one time, which this oracle gives, it is `euler`
    "euler_ancestral": Case("N", None, others=({"eta": 0.0}, {"eta": 0.5})),
    "heun": Case("2N-1", 2),
    "dpm2": Case("2N-1", 2),
    "edm": Case(
        "2N-1",
        None,
        {"s_churn": 20.0},
        others=({"s_churn": 0.0}, {"s_churn": 3.0, "s_min": 0.1, "s_max": 2.0}),
    ),
    "runge_kutta": Case(
        "2N-1",
        None,
        {"path": "flow", "s_churn": 20.0},
        others=(
            {"scaled": False},
            {"alpha": 0.5},
            {"path": "vp", "s_churn": 3.0, "s_min": 0.1, "s_max": 2.0},
        ),
    ),
    "interpolant_sde": Case(
        "N",
        None,
        {"last": "tweedie"},
        others=({"diffusion": "constant"}, {"norm": 0.5}, {"path": "flow"}, {"last": "mean"}),
    ),
    "lms": Case("N", 2, {"order": 2}),
    "plms": Case("N+1", 2),
    "pndm": Case("N+9", 2),
    "dpmpp_2m": Case("N", 2),
    "dpmpp_3m": Case("N", 2),
    "dpmpp_2m_sde": Case("N", None, others=({"eta": 0.0}, {"eta": 0.5})),
    "dpmpp_3m_sde": Case("N", None, others=({"eta": 0.0}, {"eta": 0.5})),
    "unipc": Case("N", 3, others=({"variant": "bh1"},)),
    "consistency": Case("N", None),
    "predictor_corrector": Case("2N-1", None, others=({"snr": 0.05},)),
}
DETERMINISTIC = [name for name, case in CASES.items() if case.order]
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
both_spacings = pytest.mark.parametrize(
    "spacing", ["karras", pytest.param("exponential", marks=pytest.mark.full)]
)


def made(oracle, name, steps, spacing="linspace", **options):
    return make_sampler(
        name, oracle.chain, steps=steps, spacing=spacing, options={**CASES[name].options, **options}
    )


def test_the_suite_knows_every_sampler():
    assert sorted(CASES) == sorted(SAMPLERS)


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_it_asks_as_often_as_it_says(oracle, name, steps):
    sampler = made(oracle, name, steps)
    # Before its fourth level pndm has fewer Runge-Kutta steps; plms has nothing to repeat in one
    # step.
    fewer = {"pndm": 9 - 3 * min(3, steps - 1), "plms": int(steps == 1)}.get(name, 0)
    assert (
        sampler.evaluations
        == {"N": steps, "2N-1": 2 * steps - 1, "N+1": steps + 1, "N+9": steps + 9}[
            CASES[name].evaluations
        ]
        - fewer
    )
    traced = []

    def predict(x_t, t):
        traced.append(t)
        return Prediction(x_t, x_t, x_t, x_t)

    denoiser = from_function(sampler.schedule, predict)
    jax.eval_shape(lambda x_T, keys: sample(denoiser, sampler, x_T, keys).x_0, *oracle.start(1))
    assert len(traced) == 1  # the body of the scan evaluates once, and so does every row
    assert sampler.num_rows == sampler.evaluations


@every_sampler
def test_one_step_goes_to_the_predicted_image(oracle, name):
    x_T, keys = oracle.start(8)
    sampler = made(oracle, name, 1)
    signal, sigma = oracle.start_levels(sampler)
    found = oracle.run(sampler, x_T, keys).x_0
    # Float32, and x̄ is 8 times as large as the result.
    np.testing.assert_allclose(
        found, oracle.x_0(np.asarray(x_T, np.float64) / signal, sigma), rtol=0, atol=1e-5
    )


@pytest.mark.slow
@every_sampler
@pytest.mark.parametrize("steps", [2, 3])
def test_two_and_three_steps_come_nearer_to_the_data(oracle, name, steps):
    x_T, keys = oracle.start(8)
    sampler = made(oracle, name, steps)
    x_0 = oracle.run(sampler, x_T, keys).x_0
    assert np.isfinite(x_0).all()
    assert np.abs(x_0).max() < np.abs(x_T / oracle.start_levels(sampler)[0]).max()


@pytest.mark.full
@every_sampler
def test_an_image_depends_on_its_own_noise_alone(oracle, name):
    """Neither on its place in the batch nor on its neighbours: bit for bit, in one program."""
    x_T, keys = oracle.start(8)
    sampler = made(oracle, name, 8)
    together = np.asarray(oracle.run(sampler, x_T, keys).x_0)
    order = np.array([3, 1, 7, 0, 6, 2, 5, 4])
    np.testing.assert_array_equal(oracle.run(sampler, x_T[order], keys[order]).x_0, together[order])
    others, other_keys = oracle.start(8, seed=1)
    mixed = jnp.concatenate([x_T[:4], 3 * others[4:]]), jnp.concatenate([keys[:4], other_keys[4:]])
    np.testing.assert_array_equal(oracle.run(sampler, *mixed).x_0[:4], together[:4])


@pytest.mark.full
@every_sampler
def test_options_and_spacings_are_data_of_one_program(oracle, programs, name):
    start = oracle.start(8)
    default = oracle.run(made(oracle, name, 8), *start).x_0
    compiled = programs()
    for spacing in SPACINGS:
        assert np.isfinite(oracle.run(made(oracle, name, 8, spacing), *start).x_0).all()
    for options in CASES[name].others:
        assert not np.array_equal(oracle.run(made(oracle, name, 8, **options), *start).x_0, default)
    assert programs() == compiled


@pytest.mark.full
@every_sampler
def test_every_option_changes_something(oracle, name):
    tried = set(CASES[name].options).union(*CASES[name].others)
    others = {
        "lms": {"order"},
        "plms": {"averages"},
        "unipc": {"order"},
        "predictor_corrector": {"corrector_steps"},
        "edm": {"s_noise", "rounded"},
        "runge_kutta": {"s_noise", "order", "rounded"},
        "interpolant_sde": {"order"},
    }
    assert tried | others.get(name, set()) == set(default_options(name))
    start = oracle.start(8)
    default = oracle.run(made(oracle, name, 8), *start).x_0
    for option in others.get(name, ()):
        changed = {
            "order": {"runge_kutta": 1, "interpolant_sde": 2}.get(name, 3),
            "averages": "v",
            "corrector_steps": 2,
            "s_noise": 1.1,
            "rounded": True,
        }[option]
        assert not np.array_equal(
            oracle.run(made(oracle, name, 8, **{option: changed}), *start).x_0, default
        )


@pytest.mark.full
@every_sampler
def test_frames_lead_from_the_noise_to_the_sample(oracle, name):
    x_T, keys = oracle.start(8)
    sampler = made(oracle, name, 8)
    found = oracle.run(sampler, x_T, keys, num_frames=3)
    np.testing.assert_array_equal(found.frames_x_t[0], x_T)
    np.testing.assert_array_equal(found.frames_x_t[-1], found.x_0)
    # fused otherwise
    np.testing.assert_allclose(found.x_0, oracle.run(sampler, x_T, keys).x_0, rtol=0, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_it_follows_the_flow_to_clean_data(oracle, name):
    """From every spacing's own first level; and in as many steps as the chain has."""
    x_T, keys = oracle.start(8)
    short = Chain(make_betas("linear", 20, beta_start=0.005, beta_end=0.4))
    samplers = {spacing: made(oracle, name, 20, spacing) for spacing in SPACINGS}
    samplers["all T"] = make_sampler(name, short, steps=20, options=CASES[name].options)
    for spacing, sampler in samplers.items():
        signal, sigma = oracle.start_levels(sampler)
        exact = oracle.flow(x_T / signal, np.array([sigma, 1e-6]))[-1]
        error = np.abs(oracle.run(sampler, x_T, keys).x_0 - exact).max()
        # the data are 2 wide; the next tests check the order
        assert error < 0.25, (spacing, error)


@pytest.mark.full
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_is_enough(oracle, name):
    x_T, keys = oracle.start(8)
    found = oracle.run(made(oracle, name, 20, "karras"), x_T, keys).x_0
    times = space(oracle.chain, "karras", 20)
    with jax.enable_x64(True):
        sampler = SAMPLERS[name](oracle.chain, times, **CASES[name].options, dtype=np.float64)
        exact = oracle.run(sampler, np.asarray(x_T), keys, dtype=np.float64).x_0
    # Twenty roundings of 1e-7 of an x̄ that is at first ten times as large as the data.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


@every_sampler
def test_nothing_is_left_to_matrix_units_which_round_their_factors(oracle, name):
    """No sum of predictions is written as a product of matrices.

    That would be one of bfloat16 on TPU and of TF32 on GPU.
    """

    sampler = made(oracle, name, 4)
    denoiser = from_function(sampler.schedule, lambda x_t, t: Prediction(x_t, x_t, x_t, x_t))
    program = jax.make_jaxpr(lambda x_T, keys: sample(denoiser, sampler, x_T, keys).x_0)(
        *oracle.start(2)
    )
    assert "dot_general" not in str(program)


# Orders that the first steps, of lower order, do not spoil over this range; unipc's corrector makes
# order p into p+1.
ORDERS = [
    (name, CASES[name].options, CASES[name].order) for name in DETERMINISTIC if name != "dpmpp_3m"
] + [
    ("edm", {"s_churn": 0.0}, 2),
    ("runge_kutta", {"path": "flow"}, 2),
    ("runge_kutta", {"path": "vp", "alpha": 0.5}, 2),
    ("runge_kutta", {"path": "cosine", "alpha": 2 / 3}, 2),
    ("runge_kutta", {"path": "vp", "order": 1}, 1),
    ("lms", {"order": 1}, 1),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
    ("unipc", {"order": 3}, 4),
]


@both_spacings
@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_the_error_falls_at_the_order_of_the_method(oracle, name, options, order, spacing):
    found = oracle.order(name, options, spacing)
    # The next term of the error expansion shows at these N. An order more or less is 1 away.
    assert found == pytest.approx(order, abs=0.2 if order < 4 else 0.5)


@both_spacings
@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("lms", {"order": 2}, 2),
        ("lms", {"order": 3}, 3),
        ("lms", {}, 4),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_3m", {}, 3),
    ],
)
def test_a_multistep_method_with_its_history_has_its_full_order(
    oracle, name, options, order, spacing
):
    columns = options.get("order", {"lms": 4, "dpmpp_2m": 2, "dpmpp_3m": 3}[name])
    found = oracle.order(name, options, spacing, exact_history=columns - 1)
    assert found == pytest.approx(order, abs=0.3)


@pytest.mark.slow
@every_sampler
def test_a_chain_walked_in_segments_of_any_lengths_is_the_chain_bit_for_bit(oracle, name):
    """By one program: where the cuts are is an argument of it."""
    sampler, num_frames, traces = made(oracle, name, 12), 4, []
    x_T, keys = oracle.start(5)
    denoiser = exact_denoiser(oracle.mixture(), sampler.schedule, variance="fixed_small")
    whole = jax.jit(lambda x_T, keys: sample(denoiser, sampler, x_T, keys, num_frames=num_frames))(
        x_T, keys
    )

    @jax.jit
    def segment(walk, keys, first, last):
        traces.append(1)
        return advance(denoiser, sampler, walk, keys, first, last)

    for length in (1, 5, sampler.num_rows):
        walk = jax.jit(lambda x_T: begin(sampler, x_T, num_frames=num_frames))(x_T)
        for first in range(0, sampler.num_rows, length):
            walk = segment(
                walk, keys, np.int32(first), np.int32(min(first + length, sampler.num_rows))
            )
        for ours, theirs in zip(finish(sampler, walk), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(traces) == 1
