"""Learning rates against closed forms; Adam and AdamW against the papers' recursions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.training.optimizer import DECAYS, check_length, make_learning_rate, make_optimizer

PEAK, WARMUP, STEPS = 2e-4, 50, 250


@pytest.mark.parametrize(
    ("decay", "after"),
    [
        ("constant", lambda progress: np.ones_like(progress)),
        ("cosine", lambda progress: (1 + np.cos(np.pi * progress)) / 2),
        ("linear", lambda progress: 1 - progress),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
def test_the_rate_rises_from_0_and_then_decays_to_the_end_of_the_run(decay, after, warmup):
    rate = make_learning_rate(PEAK, warmup_steps=warmup, decay=decay, num_steps=STEPS)
    step = np.arange(STEPS + 1)
    rising = step / max(warmup, 1)
    expected = PEAK * np.where(step < warmup, rising, after((step - warmup) / (STEPS - warmup)))
    # Absolute at the end of the decay, where 1 + cos cancels.
    np.testing.assert_allclose(
        jax.vmap(rate)(jnp.asarray(step)), expected, rtol=2e-6, atol=1e-7 * PEAK
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("longer", [15, 30])
def test_a_run_may_get_another_length_while_its_steps_so_far_are_those_of_that_length(
    decay, warmup, longer
):
    before, after = (
        np.float64(
            [
                make_learning_rate(PEAK, warmup_steps=warmup, decay=decay, num_steps=n)(s)
                for s in range(12)
            ]
        )
        for n in (12, longer)
    )
    allowed = []
    for step in range(13):
        try:
            check_length(
                PEAK,
                warmup_steps=warmup,
                decay=decay,
                num_steps=longer,
                saved_num_steps=12,
                step=step,
            )
            allowed.append(True)
        except UsageError:
            allowed.append(False)
    assert allowed == [bool(np.all(before[:step] == after[:step])) for step in range(13)]
    check_length(PEAK, warmup_steps=warmup, decay=decay, num_steps=12, saved_num_steps=12, step=12)


def test_a_length_that_is_passed_is_no_question_of_the_rate():
    check_length(PEAK, warmup_steps=2, decay="cosine", num_steps=10, saved_num_steps=20, step=20)


def test_the_refusal_of_another_length_says_what_the_rate_would_be():
    """Linear from 2e-4 at step 50: at step 150, half of 250 steps is left and a quarter of 550 has
    gone."""
    with pytest.raises(
        UsageError,
        match=r"train\.num_steps is 450.* 250 steps .*step 150 .* 0\.00015 instead of 0\.0001",
    ):
        check_length(
            PEAK, warmup_steps=50, decay="linear", num_steps=450, saved_num_steps=250, step=150
        )


def _adam(gradients, x, rate, *, b1, b2, eps, weight_decay=0.0):
    """Kingma & Ba 2015, algorithm 1; the decay of Loshchilov & Hutter 2019, algorithm 2, scaled by
    the rate."""
    m = v = 0.0
    for t, g in enumerate(np.float64(gradients), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        x = x - rate(t - 1) * (update + weight_decay * x)
    return x


@pytest.mark.parametrize(("name", "weight_decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", 0.1)])
def test_the_update_is_the_papers(name, weight_decay):
    moments = {"b1": 0.8, "b2": 0.95, "eps": 1e-2}  # eps large enough to see where it is added
    rate = make_learning_rate(0.01, warmup_steps=3, decay="linear", num_steps=20)
    optimizer = make_optimizer(name, rate, weight_decay=weight_decay, **moments)
    gradients = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    x = jnp.linspace(-1, 1, 5)
    state = optimizer.init(x)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, x)
        x = optax.apply_updates(x, updates)
    expected = _adam(
        gradients,
        np.linspace(-1, 1, 5),
        lambda n: float(rate(n)),
        weight_decay=weight_decay,
        **moments,
    )
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7)


def test_settings_that_cannot_be_are_refused():
    constant = make_learning_rate(0.1, warmup_steps=0, decay="constant", num_steps=1)
    with pytest.raises(UsageError, match="Did you mean 'adam"):
        make_optimizer("adma", constant)
    with pytest.raises(UsageError, match=r"weight decay .*0\.1.*adamw"):
        make_optimizer("adam", constant, weight_decay=0.1)
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        make_learning_rate(0.1, warmup_steps=0, decay="cosin", num_steps=1)
    with pytest.raises(UsageError, match=r"warmup_steps \(10\).*num_steps \(10\)"):
        make_learning_rate(0.1, warmup_steps=10, decay="cosine", num_steps=10)
    make_learning_rate(0.1, warmup_steps=10, decay="constant", num_steps=10)
