"""Tensors that are mapped into memory one at a time, from files that may be damaged."""

import json
import pathlib
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.archives import read_safetensors
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.tensor_files import read_tensors
from ddpm_jax.interop.tensor_store import Renamed, Stored, TensorStore, open_tensors

TENSORS = {
    "grid": np.arange(24, dtype=np.float32).reshape(6, 4),
    "half": np.arange(5, dtype=np.float16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_a_tensor_is_mapped_while_it_is_kept(path):
    store = open_tensors(path)
    assert store.shapes == {name: value.shape for name, value in TENSORS.items()}
    assert store.nbytes == sum(value.nbytes for value in TENSORS.values())
    maps = pathlib.Path("/proc/self/maps")
    for name, value in TENSORS.items():
        found = store[name]
        np.testing.assert_array_equal(found, value)
        assert not found.flags.writeable
        if value.size and maps.exists():
            assert str(path) in maps.read_text()
        del found
        assert not maps.exists() or str(path) not in maps.read_text()


def test_other_names_look_up_one_tensor_at_a_time():
    looked = []

    class Lazy(dict):
        def __getitem__(self, name):
            looked.append(name)
            return super().__getitem__(name)

    renamed = Renamed(Lazy(a=1, b=2, c=3), str.upper, ["a", "b"])
    assert (set(renamed), len(renamed), "C" in renamed, looked) == ({"A", "B"}, 2, False, [])
    assert renamed["B"] == 2
    assert looked == ["b"]


def test_parts_of_a_stored_tensor(path):
    grid = open_tensors(path).entries["grid"]
    for part, value in zip(grid.split(3), np.split(TENSORS["grid"], 3), strict=True):
        np.testing.assert_array_equal(part.load(), value)
    columns = Stored(grid.path, grid.offset, grid.dtype, (4, 6), (1, 4))
    for part, value in zip(columns.split(2), np.split(TENSORS["grid"].T, 2), strict=True):
        np.testing.assert_array_equal(part.load(), value)
    convolution = columns._replace(shape=(4, 6, 1, 1), strides=(1, 4, 1, 1))
    np.testing.assert_array_equal(convolution.as_matrix().load(), TENSORS["grid"].T)
    store = TensorStore({"a": grid, "b": columns}).renamed({"b": "c"})
    assert list(store) == ["c"]


def test_a_header_whose_length_looks_like_a_zip_file_is_one_of_safetensors(path):
    """The first bytes are a length, and may be any: 0x4b50 is "PK", 0x80 begins a pickle."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for wanted in (0x4B50, 0x0480):
        header = data[8 : 8 + length].ljust(wanted)
        path.write_bytes(wanted.to_bytes(8, "little") + header + data[8 + length :])
        np.testing.assert_array_equal(open_tensors(path)["grid"], TENSORS["grid"])
        assert set(read_tensors(path, what="weights", how="")) == set(TENSORS)


def test_a_damaged_file_is_refused_or_read_as_from_its_bytes(path):
    original, rng = path.read_bytes(), random.Random(2)
    for _ in range(500):
        data = bytearray(original)
        at = rng.randrange(len(data))
        if rng.random() < 0.7:
            data[at] = rng.randrange(256)
        else:
            del data[at : at + rng.choice((1, 8))]
        path.write_bytes(data)
        try:
            store = open_tensors(path)
        except UsageError:
            continue
        wanted = read_safetensors(bytes(data))
        assert set(store) == set(wanted)
        for name, value in wanted.items():
            assert store[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    ],
)
def test_impossible_entries_are_refused(path, entry):
    text = json.dumps({"x": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(entry["data_offsets"][1]))
    with pytest.raises(UsageError, match="is neither a whole safetensors file"):
        open_tensors(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot be read from"):
        open_tensors(tmp_path / "nothing")
    with pytest.raises(UsageError, match="a folder"):
        open_tensors(tmp_path)
