"""The table of what a step spends on which kind of operation."""

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import operators_vs_pytorch as operators


def test_what_an_event_takes_is_without_the_events_in_it():
    events = [
        {"name": "dot.1", "ts": 20.0, "dur": 30.0},
        {"name": "call", "ts": 0.0, "dur": 100.0},
        {"name": "end: copy.2", "ts": 25.0, "dur": 5.0},
        {"name": "dot.1", "ts": 110.0, "dur": 7.0},
    ]
    found = dict.fromkeys(("call", "dot.1", "copy.2"), 0.0)
    for name, taken in operators._by_itself(events):
        found[name] += taken
    assert found == {"call": 70.0, "dot.1": 25.0 + 7.0, "copy.2": 5.0}


def test_the_kinds_of_the_loops_of_a_step():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    def step(w, x):
        return w - 0.1 * jax.grad(loss)(w, x)

    x = jnp.ones((64, 64))
    kinds = operators.kinds_of_loops(jax.jit(step).lower(x, x).compile().as_text())
    assert {operators.PRODUCTS, operators.REST, operators.ADAM} <= set(kinds.values())
    assert operators.CONVOLUTIONS not in kinds.values()


@pytest.mark.parametrize(
    ("opcodes", "source", "kind"),
    [
        ({"fusion", "dot"}, "jit(update)/jvp(DiT)/block_3/dot_general", operators.ATTENTION),
        ({"dot"}, "jit(update)/transpose(jvp(DiT))/block_3/q/dot_general", operators.PRODUCTS),
        ({"dot"}, "jit(update)/jvp(UNet)/down_0_block_1/conv1/jit(_convolve)/dot", "convolutions"),
        ({"convolution"}, "jit(update)/jvp(UNet)/conv_in/conv", operators.CONVOLUTIONS),
        ({"fusion", "multiply", "add"}, "jit(update)/add", operators.ADAM),
        ({"fusion", "copy", "bitcast"}, "jit(update)/jvp(DiT)/block_3/transpose", operators.COPIES),
        ({"fusion", "exponential"}, "jit(update)/jvp(DiT)/block_3/exp", operators.REST),
    ],
)
def test_the_kind_of_a_loop(opcodes, source, kind):
    assert operators._kind(opcodes, source) == kind
