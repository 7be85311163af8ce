"""Files of `flax.serialization`: equal to what Flax itself reads, and nothing but arrays and numbers."""

import struct
import tracemalloc

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.containers import open_container

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
TREE = {
    "conv_in": {"kernel": GRID, "bias": jnp.arange(6, dtype=jnp.bfloat16)},
    "blocks_0": {"deep": {"half": GRID.astype(np.float16), "numbers": np.arange(3)}},
    "scale": np.array(2.5, np.float32),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "complex": np.array([1 + 2j]),
}
PLAIN = {
    "step": 7,
    "far": -(1 << 40),
    "large": 1 << 40,
    "rate": 2.5,
    "name": "digits" * 20,
    "nothing": None,
    "done": True,
    "betas": [1, 2.5],
    "number": 1 + 2j,
    "loss": np.float32(0.5),
    "precise": np.array(3, jnp.bfloat16)[()],
    "nested": {"count": np.int64(3)},
}


def write(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def assert_as_flax_reads_it(path):
    wanted = flax.serialization.msgpack_restore(path.read_bytes())
    wanted = {name: value for name, value in flat(wanted) if isinstance(value, np.ndarray)}
    group = open_container(path).groups[""]
    assert set(group) == set(wanted)
    for name, value in wanted.items():
        assert (group[name].dtype, group[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(group[name], value)
        assert not group[name].flags.writeable


def test_arrays_are_those_that_flax_reads(tmp_path):
    path = write(tmp_path / "model.msgpack", TREE)
    found = open_container(path)
    assert found.kind == "a msgpack file of Flax"
    assert "conv_in/kernel" in found.groups[""]
    assert found.groups[""]["conv_in/bias"].dtype == ml_dtypes.bfloat16
    assert (found.facts, found.unread) == ({}, {})
    assert_as_flax_reads_it(path)


def test_plain_values_are_facts(tmp_path):
    found = open_container(write(tmp_path / "x", {"w": GRID, **PLAIN}))
    nested = PLAIN | {"loss": 0.5, "precise": 3.0, "nested/count": 3}
    del nested["nested"]
    assert list(found.groups[""]) == ["w"]
    assert found.facts == nested


@pytest.mark.parametrize("size", [8, 40, 95])
def test_large_arrays_in_pieces(tmp_path, monkeypatch, size):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", size)
    path = write(tmp_path / "x", TREE | {"state": {"many": {str(i): GRID + i for i in range(20)}}})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert_as_flax_reads_it(path)


@pytest.mark.parametrize("length", [300, 70_000])
@pytest.mark.parametrize("kind", [bytes, str])
def test_long_objects_of_every_length(tmp_path, kind, length):
    value = b"x" * length if kind is bytes else "x" * length
    found = open_container(write(tmp_path / "x", {"w": GRID, "long": value}))
    if kind is bytes:
        assert found.unread == {"long": "an object that is no plain value"}
    else:
        assert found.facts == {"long": value}


@pytest.mark.parametrize("count", [300, 70_000])
def test_maps_of_every_length(tmp_path, count):
    many = {str(i): np.arange(i % 9) for i in range(count)}
    assert len(open_container(write(tmp_path / "x", many)).groups[""]) == count


def test_a_tree_is_read_one_array_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {str(i): rng.normal(size=200_000).astype(np.float32) for i in range(8)}
    path = write(tmp_path / "x", tensors)
    open_container(path)
    tracemalloc.start()
    group = open_container(path).groups[""]
    before = tracemalloc.get_traced_memory()[1]
    copies = {name: np.array(group[name]) for name in group}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert before < 100_000
    assert peak < 1.1 * path.stat().st_size
    for name, value in tensors.items():
        np.testing.assert_array_equal(copies[name], value)


def array(shape=(2,), dtype="float32", data=bytes(8), kind=1, more=()):
    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data, *more)))


def pieces(shape, chunks):
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


def packed(value):
    return msgpack.packb({"w": value})


DEEP = b"\x81\xa1a" * 100_000 + b"\xc0"
HOSTILE = {
    "nothing": (b"\x81", "cut off"),
    "a map of any size": (b"\xdf\xff\xff\xff\xff", "cut off"),
    "a list of any size": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "cut off"),
    "a text of any size": (b"\x81\xa1a\xdb\xff\xff\xff\xff", "cut off"),
    "bytes of any size": (b"\x81\xa1a\xc6\xff\xff\xff\xff", "cut off"),
    "an extension of any size": (b"\x81\xa1a\xc9\xff\xff\xff\xff\1", "cut off"),
    "maps in maps": (DEEP, "nested too deeply"),
    "lists in lists": (b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", "nested too deeply"),
    "extensions in extensions": (
        b"\x81\xa1a" + b"".join(struct.pack(">BIB", 0xC9, 6 * i, 1) for i in range(4999, -1, -1)),
        "damaged",
    ),
    "more entries than there can be": (
        b"\x81\xa1a\xdd" + struct.pack(">I", 3_000_000) + b"\xc0" * 3_000_000,
        "more than 2,000,000 values",
    ),
    "a code that is not used": (b"\x81\xa1a\xc1", "damaged"),
    "a list as a key": (b"\x81\x91\x01\xc0", "nested too deeply"),
    "nothing as a key": (b"\x81\xc0\xc0", "neither text nor a number"),
    "a key twice": (b"\x82\xa1a\xc0\xa1a\xc0", "stands twice"),
    "text that is none": (b"\x81\xa1a\xa1\xff", "a text in it is damaged"),
    "more after the end": (packed(array()) + b"\xc0", "goes on after its end"),
    "no arrays": (packed(3), "no tensors by name"),
    "another extension": (packed(msgpack.ExtType(4, b"\xc0")), "an object of type 4"),
    "a time": (b"\x81\xa1a\xd6\xff" + bytes(4), "damaged|type -1"),
    "another type": (packed(array(dtype="object")), "of type object"),
    "a structure": (packed(array(dtype="f4,f4")), "of type f4,f4"),
    "too few bytes": (packed(array((3,))), r"shape \[3\] has 8 bytes"),
    "a shape without end": (packed(array((1 << 62, 1 << 62))), "has 8 bytes"),
    "an empty one without end": (
        packed(array((1 << 62, 1 << 62, 0), data=b"")),
        "impossible shape",
    ),
    "a negative side": (packed(array((-2,))), "damaged"),
    "many sides": (packed(array((1,) * 40, data=bytes(4))), "damaged"),
    "a shape of text": (packed(array(("2",))), "damaged"),
    "a shape that is a number": (packed(array(2)), "damaged"),
    "more than an array": (packed(array(more=(1,))), "damaged"),
    "bytes after an array": (packed(msgpack.ExtType(1, array().data + b"\0")), "damaged"),
    "an array as a scalar": (packed(array(kind=3)), "a number in it is damaged"),
    "half a complex number": (packed(msgpack.ExtType(2, b"\x91\xcb" + bytes(8))), "complex number"),
    "pieces of another size": (packed(pieces({"0": 3}, {"0": array()})), "in pieces is damaged"),
    "pieces of two types": (
        packed(pieces({"0": 4}, {"0": array(), "1": array(dtype="int32")})),
        "in pieces is damaged",
    ),
    "no pieces": (packed(pieces({"0": 0}, {})), "in pieces is damaged"),
    "a piece that is none": (packed(pieces({"0": 2}, {"0": 3})), "in pieces is damaged"),
    "a missing piece": (packed(pieces({"0": 2}, {"1": array()})), "in pieces is damaged"),
    "pieces without a shape": (packed({"__msgpack_chunked_array__": True}), "in pieces is damaged"),
    "two arrays of one name": (
        msgpack.packb({"a/b": array(), "a": {"b": array()}}),
        "two of its entries are called 'a/b'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_flax_does_not_pack_is_refused(tmp_path, name):
    content, said = HOSTILE[name]
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        open_container(path)
    assert str(path) in str(error.value)
