"""Checkpoints of TensorFlow, read without it."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.containers import is_container, open_container
from ddpm_jax.interop.tensorflow_table import masked_crc32c

from .bundles import entry, field, header, table, write_bundle

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/tensorflow_index"
PREFIX = "model.ckpt-790000"
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "global_step": np.array(7),
    **{f"model/conv_{i}/W": GRID + i for i in range(9)},
    "model/conv_0/W/ExponentialMovingAverage": GRID * 2,
    "model/half": GRID.astype(np.float16),
    "model/bf": GRID.astype(ml_dtypes.bfloat16),
    "model/empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def golden(tmp_path):
    """The checkpoint of TensorFlow, of whose data only the first bytes are here."""
    sizes = json.loads((GOLDENS / "variables.json").read_text())
    shutil.copy(GOLDENS / f"{PREFIX}.index", tmp_path)
    data = (GOLDENS / "data_begins").read_bytes()
    path = tmp_path / f"{PREFIX}.data-00000-of-00001"
    path.write_bytes(data + bytes(sizes["data_bytes"] - len(data)))
    return tmp_path / PREFIX, sizes["variables"], len(data)


def test_a_checkpoint_that_tensorflow_wrote(golden):
    path, shapes, begins = golden
    found = open_container(path)
    assert found.kind == "a checkpoint of TensorFlow"
    assert (list(found.groups), found.facts, found.unread) == ([""], {}, {})
    group = found.groups[""]
    assert {name: list(shape) for name, shape in group.shapes.items()} == shapes
    compared = 0
    with np.load(GOLDENS / "some_variables.npz") as wanted:
        for name, value in wanted.items():
            assert group[name].dtype == value.dtype
            if group.entries[name].offset + value.nbytes <= begins:
                np.testing.assert_array_equal(group[name], value)
                compared += 1
    assert compared == 5  # W, its average and three scalars


def test_it_may_be_named_in_several_ways(golden):
    path, shapes, _ = golden
    folder = path.parent
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "/elsewhere/{PREFIX}"\n'
        'all_model_checkpoint_paths: "/elsewhere/model.ckpt-780000"\n'
    )
    for name in (f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001", "."):
        assert set(open_container(folder / name).groups[""]) == set(shapes)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"\n')
    with pytest.raises(UsageError, match=r"has no model.ckpt-1.index, whose checkpoint is the"):
        open_container(folder)
    (folder / "checkpoint").write_text("nothing")
    with pytest.raises(UsageError, match="does not say which checkpoint is the latest"):
        open_container(folder)
    (folder / "checkpoint").unlink()
    assert is_container(folder)
    assert set(open_container(folder).groups[""]) == set(shapes)  # the only one there is
    shutil.copy(folder / f"{PREFIX}.index", folder / "model.ckpt-80.index")
    with pytest.raises(UsageError, match=r"holds 2 .* name one of them, as .*/model.ckpt-790000;"):
        open_container(folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_types_and_several_data_files(tmp_path, shards):
    group = open_container(write_bundle(tmp_path, TENSORS, shards=shards)).groups[""]
    assert set(group) == set(TENSORS)
    for name, value in TENSORS.items():
        assert group[name].dtype == value.dtype
        np.testing.assert_array_equal(group[name], value)
        assert not group[name].flags.writeable


def test_what_is_no_array_of_numbers_is_named(tmp_path):
    def change(entries):
        more = {
            b"\0\0\1slice": entry(1, (1,), 0, 0, 4),
            b"graph": entry(7, (), 0, 0, 0),
            b"resource": entry(20, (), 0, 0, 0),
            b"parts": entry(1, (8,), 0, 0, 0, field(7, b"")),
        }
        return entries | more

    found = open_container(write_bundle(tmp_path, {"w": GRID}, change=change))
    assert list(found.groups[""]) == ["w"]
    assert found.unread == {
        "graph": "text",
        "resource": "a variable of type 20",
        "parts": "a variable that is partitioned",
    }


def test_checksums_are_those_of_another_implementation():
    assert (
        masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    )
    crc32c = pytest.importorskip("google_crc32c")
    for data in (b"", bytes(range(256)) * 9):
        crc = crc32c.value(data)
        assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


HOSTILE = {
    "no header": (lambda x: {b"w": x[b"w"]}, "no index of a checkpoint"),
    "big-endian": (lambda x: x | {b"": header(2, 1)}, "big-endian"),
    "no data files": (lambda x: x | {b"": header(0)}, "tells of 0 data files"),
    "many data files": (lambda x: x | {b"": header(1 << 40)}, "data files"),
    "another size": (lambda x: x | {b"v": entry(1, (5,), 0, 0, 24)}, "not of the size of its shape"),
    "overflow": (lambda x: x | {b"v": entry(1, (1 << 32, 1 << 32), 0, 0, 0)}, "not of the size"),
    "beyond the data": (lambda x: x | {b"w": entry(1, (4, 6), 0, 96, 96)}, "beyond the end"),
    "far beyond": (lambda x: x | {b"w": entry(1, (4, 6), 0, (1 << 63) - 1, 96)}, "beyond the end"),
    "a negative offset": (lambda x: x | {b"w": entry(1, (4, 6), 0, (1 << 64) - 4, 96)}, "negative"),
    "a negative side": (lambda x: x | {b"w": entry(1, ((1 << 64) - 1,), 0, 0, 96)}, "negative"),
    "overlapping": (lambda x: x | {b"v": entry(1, (4, 6), 0, 0, 96)}, "overlaps another"),
    "an unknown data file": (lambda x: x | {b"w": entry(1, (4, 6), 5, 0, 96)}, "has no model.ckpt-7.data-00005"),
    "a negative data file": (lambda x: x | {b"w": entry(1, (4, 6), (1 << 64) - 1, 0, 96)}, "negative"),
    "many dimensions": (lambda x: x | {b"w": entry(1, (1,) * 40, 0, 0, 4)}, "too many dimensions"),
    "a name that is no text": (lambda x: x | {b"\xff": x[b"w"]}, "no text"),
    "a long name": (lambda x: x | {b"n" * 2000: x[b"w"]}, "damaged"),
    "a message that is cut off": (lambda x: x | {b"w": x[b"w"][:-1] + b"\xff"}, "cut off"),
    "a group": (lambda x: x | {b"w": b"\x0b"}, "damaged"),
    "bytes for a number": (lambda x: x | {b"w": field(1, b"x")}, "damaged"),
    "a number for a shape": (lambda x: x | {b"w": field(2, 3)}, "damaged"),
    "no variables": (lambda x: {b"": x[b""]}, "no variables of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_impossible_entries_are_refused(tmp_path, name):
    change, said = HOSTILE[name]
    path = write_bundle(tmp_path, {"w": GRID}, change=change)
    with pytest.raises(UsageError, match=said):
        open_container(path)


def test_damaged_and_compressed_tables_are_refused(tmp_path):
    path = write_bundle(tmp_path, {"w": GRID}, compression=1)
    with pytest.raises(UsageError, match="blocks are compressed"):
        open_container(path)
    path = write_bundle(tmp_path, {"w": GRID})
    index = tmp_path / f"{path.name}.index"
    data = index.read_bytes()
    index.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
    with pytest.raises(UsageError, match="checksum"):
        open_container(path)
    index.write_bytes(data[:-8] + bytes(8))
    with pytest.raises(UsageError, match="no table of TensorFlow"):
        open_container(path)
    index.write_bytes(table([(b"", header())] * 2))
    with pytest.raises(UsageError, match="names are not in order"):
        open_container(path)
    (tmp_path / f"{path.name}.data-00001-of-00002").unlink()
    (tmp_path / f"{path.name}.data-00000-of-00002").unlink()
    index.write_bytes(data)
    with pytest.raises(UsageError, match=r"has no model.ckpt-7.data-00000-of-00002"):
        open_container(path)
