"""Weights of another run with which a new one begins: which rows of a table of classes are kept."""

import jax
import numpy as np
import pytest

from ddpm_jax.training.initial_weights import fitting, replaced

CONV = {"kernel": np.ones((2, 3), np.float32)}


def tree(rows, start):
    table = start + np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return {"conv": CONV, "class_embedding": {"embedding": table}}


def begun(there, here, classes):
    """Return the table that a model begins with, that of the other run and what is drawn."""
    theirs, ours = tree(there, 100), tree(here, 0)
    found = fitting(theirs, ours, source="runs/other", classes=classes, groups=["model", "dit"])
    table = jax.jit(replaced)(ours, found.given)["class_embedding"]["embedding"]
    tables = (x["class_embedding"]["embedding"] for x in (theirs, ours))
    return found, np.asarray(table), *tables


@pytest.mark.parametrize(
    ("there", "here", "classes", "kept", "said"),
    [
        # rows of the table here <- there
        (4, 6, (3, 5), {0: 0, 1: 1, 2: 2, 5: 3}, "0 to 2 and that of the null class"),
        (6, 4, (5, 3), {0: 0, 1: 1, 2: 2, 3: 5}, "0 to 2 and that of the null class"),
        (3, 6, (3, 5), {0: 0, 1: 1, 2: 2}, "0 to 2"),  # of theirs there is no null class
        (6, 3, (5, 3), {0: 0, 1: 1, 2: 2}, "0 to 2"),  # nor of ours
        (2, 3, (1, 2), {0: 0, 2: 1}, "0 and that of the null class"),
    ],
)
def test_rows_of_the_same_classes_are_kept_and_the_others_drawn(there, here, classes, kept, said):
    found, table, theirs, ours = begun(there, here, classes)
    assert found.rows == said
    assert found.fresh == ["class_embedding/embedding"]
    for row in range(here):
        wanted = theirs[kept[row]] if row in kept else ours[row]
        np.testing.assert_array_equal(table[row], wanted)


def test_with_the_same_classes_the_whole_table_is_taken():
    found, table, theirs, _ = begun(4, 4, (3, 3))
    assert (found.fresh, found.rows) == ([], "")
    np.testing.assert_array_equal(table, theirs)


def test_a_table_that_only_one_of_both_has_is_drawn():
    found = fitting(
        {"conv": CONV}, tree(4, 0), source="runs/other", classes=(0, 3), groups=["model"]
    )
    assert found.fresh == ["class_embedding/embedding"]
    assert set(found.given) == {("conv", "kernel")}
