"""Diagnosis of a step that is not finite: the step is repeated with every module watched.

The step itself only says that its loss or gradient is not finite, and leaves the state as it was
(`step`). Here that state and batch are run again, first forward, then with the gradient, and the
first place that fails is described. The remedy is given by the loop.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from ddpm_jax.threefry import THREEFRY
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.state import TrainState

Explain = Callable[[TrainState, Mapping[str, np.ndarray], chex.PRNGKey], str | None]
NETWORK = "the network"


def make_explain(
    objective: Objective, *, parts: int, whole: Callable[[Any], Any] = lambda tree: tree
) -> Explain:
    """Return explain(state, batch, base_key) -> why the step from `state` is not finite.

    The reason is half a sentence.

    Several processes call it together, each with its share of the batch. It returns None if
    everything in that share is finite.

    Args:
      objective: of the run. Its network is watched if it consists of Flax modules.
      parts: number of equal parts in which this process's share of the batch is computed, one after
        another. An example draws the same numbers in any part, so a part need be no larger than
        what a device computes at once.
      whole: a part of the state -> all of it on every device (`Parallelism.whole`).
    """

    def explain(
        state: TrainState, batch: Mapping[str, np.ndarray], base_key: chex.PRNGKey
    ) -> str | None:
        # One copy of what every device holds.
        held = whole((state.params, state.frozen, state.objective_state, state.step))
        params, *given, step = jax.tree.map(lambda leaf: leaf.addressable_data(0), held)
        bad = next(
            (name for name, leaf in _named(params) if not bool(jnp.all(jnp.isfinite(leaf)))), None
        )
        if bad is not None:
            return f"the parameter {bad} was not finite before that step"
        rest = jax.tree.map(np.asarray, (*given, jax.random.key_data(base_key), step))
        watch = _Watch()
        for examples in _parts(batch, parts):
            watch.bad.clear()
            with nn.intercept_methods(watch):
                loss, aux = _forward(objective, params, *rest, *examples)
                jax.effects_barrier()
            if not np.all(np.isfinite(loss)):
                return (_weight(aux) or watch.first()) + _where(loss, aux)
        for examples in _parts(batch, parts):
            norms = _gradient_norms(objective, params, *rest, *examples)
            if not np.all(np.isfinite(jax.tree.leaves(norms))):
                return _first_gradient(norms, watch)
        return None

    return explain


def _parts(batch: Mapping[str, np.ndarray], parts: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield (examples, their positions in the global batch)."""
    size = len(jax.tree.leaves(batch)[0])
    index = jax.process_index() * size + np.arange(size, dtype=np.int32)
    for rows in np.split(np.arange(size), parts):
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], dict(batch)), index[rows]


@functools.partial(jax.jit, static_argnums=0)
def _forward(objective: Objective, params, frozen, remembered, key_data, step, examples, index):
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=THREEFRY), step)
    return objective.loss(params, frozen, remembered, examples, key, index)


@functools.partial(jax.jit, static_argnums=0)
def _gradient_norms(
    objective: Objective, params, frozen, remembered, key_data, step, examples, index
):
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=THREEFRY), step)

    def mean_loss(params):
        loss, _ = objective.loss(params, frozen, remembered, examples, key, index)
        return jnp.mean(loss)

    return jax.tree.map(
        lambda leaf: jnp.sqrt(jnp.sum(jnp.square(leaf))), jax.grad(mean_loss)(params)
    )


class _Watch:
    """A record of the inputs and outputs of every Flax module, in the order of computation.

    It is an interceptor for `nn.intercept_methods`. It uses a callback from the device, not a
    result of the program, because recomputed blocks (`nn.remat`) let nothing else out.
    """

    def __init__(self) -> None:
        # ("mid/attention", "input"), in the order of computation
        self.places: list[tuple[str, str]] = []
        self.bad: set[int] = set()  # the places where a number was not finite
        self.largest: dict[int, float] = {}

    def __call__(self, call, args, kwargs, context):
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join(context.module.path) or NETWORK
        self._note(name, "input", (args, kwargs))
        output = call(*args, **kwargs)
        self._note(name, "output", output)
        return output

    def _note(self, name: str, side: str, tree: Any) -> None:
        numbers = [
            x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        ]
        if numbers:
            finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in numbers])
            largest = jnp.array(
                [jnp.max(jnp.abs(x).astype(jnp.float32), initial=0.0) for x in numbers]
            )
            jax.debug.callback(
                functools.partial(self._seen, len(self.places)), jnp.all(finite), jnp.max(largest)
            )
        self.places.append((name, side))

    def _seen(self, place: int, finite: np.ndarray, largest: np.ndarray) -> None:
        self.largest[place] = float(np.max(largest))
        if not np.all(finite):
            self.bad.add(place)

    def first(self) -> str:
        """Return the first place that is not finite, in words; the loss if there is none."""
        if not self.bad:
            return (
                "the network's output is finite, the loss that is made of it is not"
                if self.places
                else "the loss"
            )
        place = min(self.bad)
        name, side = self.places[place]
        if side == "input":
            return f"the first number that is not finite is in the input of {name}"
        entered = max(i for i, there in enumerate(self.places[:place]) if there == (name, "input"))
        reach = (
            f" (its input is finite, up to {self.largest[entered]:.3g})"
            if entered in self.largest
            else ""
        )
        return f"the first number that is not finite is in the output of {name}{reach}"

    def order(self, name: str) -> int:
        """Return when the module of a parameter was first computed; -1 if it was not seen."""
        module = name.rpartition("/")[0]
        return self.places.index((module, "input")) if (module, "input") in self.places else -1


def _weight(aux: Any) -> str | None:
    """Return a sentence if only the weight over t makes the diffusion loss fail, else None.

    That is where the errors that it weighs are finite.
    """
    errors = [getattr(aux, name, np.nan) for name in ("simple", "vlb")]
    if not all(np.all(np.isfinite(error)) for error in errors):
        return None
    return (
        f"the network's error is finite, up to {np.max(errors):.3g}, its product with the weight "
        "over t is not"
    )


def _where(loss: Any, aux: Any) -> str:
    bad = np.flatnonzero(~np.isfinite(np.asarray(loss)))
    t = getattr(aux, "t", None)
    at = "" if t is None else f", one of them at t = {int(t[bad[0]])}"
    return f", for {len(bad)} of {len(loss)} images{at}"


def _first_gradient(norms: Any, watch: _Watch) -> str:
    bad = [name for name, norm in _named(norms) if not np.isfinite(norm)]
    # The gradient is computed from the loss back to the input.
    first = max(bad, key=watch.order)
    return (
        f"the loss is finite, its gradient is not: on the way back from the loss that of {first} "
        f"is the first to fail{f', and {len(bad) - 1} more do' if len(bad) > 1 else ''}"
    )


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in tree_leaves_with_path(tree):
        yield keystr(path, simple=True, separator="/"), leaf
