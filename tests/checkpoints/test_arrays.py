"""Weights are read without Orbax where Orbax would read the same; everything else is left to it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.checkpoints import arrays, digests, reader
from ddpm_jax.errors import FailureError

ROOT = pathlib.Path(__file__).parents[2]
RUN = ROOT / "tests" / "fixtures" / "runs" / "ten_steps"
CHECKPOINT = RUN / reader.CHECKPOINTS / "10"
FIELD = "ema_params"


@pytest.fixture(scope="module")
def shapes():
    """Of a field, from the description that Orbax writes."""
    described = json.loads((CHECKPOINT / reader.STATE / "_METADATA").read_text())
    tree = {}
    for leaf in described["tree_metadata"].values():
        *folders, name = (part["key"] for part in leaf["key_metadata"])
        if folders[:1] == [FIELD]:
            inner = tree
            for folder in folders:
                inner = inner.setdefault(folder, {})
            shape = tuple(leaf["value_metadata"]["write_shape"])
            inner[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def test_the_same_arrays_as_by_orbax(shapes):
    ours = arrays.read(CHECKPOINT / reader.STATE, shapes)
    theirs = reader.restore_state(CHECKPOINT, shapes, partial=True)
    assert len(jax.tree.leaves(ours)) > 20
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (one.dtype, one.sharding) == (other.dtype, other.sharding)


def test_a_path_may_lead_up_and_over_links(tmp_path, shapes):
    (tmp_path / "link").symlink_to(RUN)
    (tmp_path / "folder").mkdir()
    state = pathlib.Path("link", reader.CHECKPOINTS, "10", reader.STATE)
    up = arrays.read(tmp_path / "folder" / ".." / state, shapes)
    assert jax.tree.map(jnp.shape, up) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_weights_of_a_run_are_read_without_orbax():
    program = (
        "import sys, ddpm_jax; ddpm_jax.load(sys.argv[1]);"
        "print([name for name in sys.modules if name.split('.')[0] == 'orbax'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(RUN)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 1), leaf.dtype),
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
    ],
    ids=["shape", "dtype"],
)
def test_what_is_not_as_expected_is_left_to_orbax(shapes, change):
    first, *others = jax.tree.leaves(shapes)
    changed = jax.tree.unflatten(jax.tree.structure(shapes), [change(first), *others])
    assert arrays.read(CHECKPOINT / reader.STATE, changed) is None


def test_another_tree_is_left_to_orbax(shapes):
    more = {FIELD: {**shapes[FIELD], "another": jax.ShapeDtypeStruct((1,), jnp.float32)}}
    fewer = {FIELD: dict(list(shapes[FIELD].items())[1:])}
    for tree in (more, fewer, {"absent": shapes[FIELD]}):
        assert arrays.read(CHECKPOINT / reader.STATE, tree) is None


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "data"])
def test_damage_without_digests_is_reported_by_orbax(tmp_path, shapes, name):
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    state = run / reader.CHECKPOINTS / "10" / reader.STATE
    (state / digests.SUMS).unlink()
    stored = [path for path in state.rglob("*") if path.parent.name == "d" and path.is_file()]
    for path in stored if name == "data" else [state / name]:
        path.chmod(0o644)
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert arrays.read(state, shapes) is None
    with pytest.raises(FailureError, match="damaged"):
        reader.read_weights(run, 10, shapes)


def test_an_older_layout_is_left_to_orbax(tmp_path, shapes):
    state = tmp_path / reader.STATE
    shutil.copytree(CHECKPOINT / reader.STATE, state)
    described = json.loads((state / "_METADATA").read_text())
    key = [{"key": name, "key_type": 2} for name in ("objective_state", "frozen", "w")]
    value = {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": [1]}
    described["tree_metadata"]["older"] = {"key_metadata": key, "value_metadata": value}
    (state / "_METADATA").chmod(0o644)
    (state / "_METADATA").write_text(json.dumps(described))
    assert arrays.read(state, shapes) is None
