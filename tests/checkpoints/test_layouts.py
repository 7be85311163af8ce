"""States saved by earlier versions, whose frozen parts lie in what the objective remembers."""

import contextlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import read_weights
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import UsageError
from ddpm_jax.training.state import TrainState

FROZEN = {"weight": np.arange(6.0, dtype=np.float32), "scale": np.float32(1.5)}
PARAMS = {"gain": np.float32([0.5, 2.0])}


class Remembered(NamedTuple):
    """What an objective remembers."""

    step: np.ndarray
    dictionary: tuple


REMEMBERED = Remembered(np.int32(7), ())
STATE = TrainState(np.int32(7), PARAMS, PARAMS, (PARAMS, ()), REMEMBERED, frozen=FROZEN)
# kind of model -> what the objective now remembers, and what an older checkpoint had of it
HELD = {
    "over latents": (REMEMBERED, {"frozen": FROZEN, "inner": REMEMBERED}),
    "over latents, nothing remembered": ((), {"frozen": FROZEN, "inner": ()}),
    "first stage": (
        REMEMBERED,
        {"step": np.int32(7), "dictionary": (), "adaptive_weight": (), "frozen": FROZEN},
    ),
}


def tree_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.fixture(scope="module", params=HELD)
def older(request, tmp_path_factory):
    """(the state, the directory where an earlier version saved it)."""
    remembered, held = HELD[request.param]
    directory = tmp_path_factory.mktemp("older")
    fields = STATE._replace(objective_state=held)._asdict()
    del fields["frozen"]
    with contextlib.closing(Checkpointer(directory, keep_last=1)) as checkpointer:
        checkpointer.save(7, fields, {"batches": 7}, {})
    return STATE._replace(objective_state=remembered), directory


def test_an_older_state_resumes_as_the_one_it_was(older):
    state, directory = older
    with contextlib.closing(Checkpointer(directory, keep_last=1)) as checkpointer:
        restored, _ = checkpointer.restore(tree_shapes(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("names", [("frozen",), ("ema_params", "frozen"), ("objective_state",)])
def test_parts_of_an_older_state_are_read_by_their_names_of_today(older, names):
    state, directory = older
    wanted = {name: getattr(state, name) for name in names}
    restored = read_weights(directory, 7, tree_shapes(wanted))
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, restored, wanted)


def test_frozen_parts_of_another_shape_are_refused_in_an_older_state_too(older):
    _, directory = older
    other = tree_shapes({"frozen": FROZEN | {"weight": np.zeros(5, np.float32)}})
    with pytest.raises(UsageError, match=r"frozen/weight is \(6,\) there and \(5,\) in this model"):
        read_weights(directory, 7, other)
