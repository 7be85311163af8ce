"""Snapshots of EDM's training loop, read as data."""

import pathlib
import struct
import tracemalloc

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.containers import open_container

from .pickled import (
    FLOATS,
    blob,
    container,
    dict_of,
    legacy,
    list_of,
    module,
    net,
    numbers,
    parameter,
    tensor,
    text,
    whole,
)

SNAPSHOT = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/edm/network-snapshot-000000.pkl"
GRID = FLOATS.reshape(4, 6)


@pytest.fixture(scope="module")
def golden():
    return open_container(SNAPSHOT)


def test_the_tensors_of_a_snapshot(golden):
    assert golden.kind == "a snapshot of EDM"
    assert (list(golden.groups), golden.unread) == (["ema"], {})
    with np.load(SNAPSHOT.with_name("network-snapshot.npz")) as file:
        wanted = {name[7:]: file[name] for name in file if name.startswith("params/")}
    group = golden.groups["ema"]
    assert set(group) == set(wanted)
    for name, value in wanted.items():
        assert group[name].dtype == value.dtype
        np.testing.assert_array_equal(group[name], value)


def test_how_the_networks_of_a_snapshot_were_made(golden):
    facts = {
        "ema._class_name": "EDMPrecond",
        "ema._init_kwargs.model_type": "SongUNet",
        "ema._init_kwargs.img_resolution": 8,
        "ema.sigma_data": 0.5,
        "ema.model._class_name": "SongUNet",
        "ema.model._init_args": [],
        "ema.model._init_kwargs.channel_mult": [1, 2],
        "ema.model._init_kwargs.dropout": 0.13,
        "ema.model.map_noise._class_name": "PositionalEmbedding",
        "loss_fn._class_name": "EDMLoss",
        "loss_fn.P_mean": -1.2,
        "augment_pipe._class_name": "AugmentPipe",
        "dataset_kwargs.resolution": 8,
    }
    assert {name: golden.facts[name] for name in facts} == facts
    scales = [value for name, value in golden.facts.items() if name.endswith(".skip_scale")]
    assert set(scales) == {np.sqrt(0.5)}  # pickled as NumPy's numbers
    assert not any("module_src" in name or "._parameters" in name for name in golden.facts)


def write(path, content):
    path.write_bytes(b"\x80\x03" + content + b".")
    return path


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda content: open_container(write(tmp_path / "x.pkl", content))


def test_nested_networks_and_what_is_beside_them(opened, tmp_path):
    block = net(_parameters=dict_of(weight=parameter(), bias=b"N"), _modules=b"}", rate=b"K\x03")
    layers = container("ModuleDict", dict_of(_modules=dict_of(**{"8x8_conv": block, "none": b"N"})))
    model = net(
        _modules=dict_of(enc=layers),
        _buffers=dict_of(filter=parameter(FLOATS[:2], (2,), (1,))),
        _init_kwargs=b"cdnnlib.util\nEasyDict\n)\x81(" + text("width") + b"K\x08u",
        _hidden=text("hidden"),
        cache=parameter(),
    )
    found = opened(dict_of(ema=net(_modules=dict_of(model=model)), other=block))
    assert {name: set(group) for name, group in found.groups.items()} == {
        "ema": {"model.enc.8x8_conv.weight", "model.filter"},
        "other": {"weight"},
    }
    np.testing.assert_array_equal(found.groups["ema"]["model.enc.8x8_conv.weight"], GRID)
    np.testing.assert_array_equal(found.groups["ema"]["model.filter"], FLOATS[:2])
    assert found.facts == {
        "ema._class_name": "Net",
        "ema.model._class_name": "Net",
        "ema.model._init_kwargs.width": 8,
        "ema.model.enc._class_name": "ModuleDict",
        "ema.model.enc.8x8_conv._class_name": "Net",
        "ema.model.enc.8x8_conv.rate": 3,
        "other._class_name": "Net",
        "other.rate": 3,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_a_network_alone(opened):
    found = opened(net(_modules=dict_of(inner=net(_parameters=dict_of(w=parameter())))))
    assert {name: list(group) for name, group in found.groups.items()} == {"": ["inner.w"]}


DTYPE = b"cnumpy\ndtype\n(" + text("f8") + b"K\x00K\x01tR"
ORDER = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
GOOD = net(_parameters=dict_of(w=parameter()))


def test_numbers_of_numpy(opened):
    number = SCALAR + DTYPE + ORDER + b"C\x08" + struct.pack("<d", 0.25) + b"\x86R"
    assert opened(dict_of(ema=GOOD, scale=number)).facts["scale"] == 0.25
    other = ORDER.replace(text("<"), text(">"))
    number = SCALAR + DTYPE + other + b"C\x08" + struct.pack(">d", 0.25) + b"\x86R"
    assert opened(dict_of(ema=GOOD, scale=number)).facts["scale"] == 0.25


SHARED = b"](" + dict_of(**{f"_{i}": b"N" for i in range(5000)}) + b"q\x00"
HOSTILE = {
    "another function": (b"cos\nsystem\n(" + text("true") + b"tR", "os.system, which is no tensor"),
    "another class": (b"ctorch.nn.modules.conv\nConv2d\n)\x81", "Conv2d, which is no tensor"),
    "a class with arguments": (b"ctorch.nn.modules.container\nModuleDict\n}\x85\x81", "no class"),
    "an object of another kind": (module(type=text("function")), "an object in it is damaged"),
    "an object without a state": (module(state=b"N"), "an object in it is damaged"),
    "an object of nothing": (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\nN\x85R",
        "an object in it is damaged",
    ),
    "the state of a container": (container("ModuleDict", whole(3)), "without attributes"),
    "parts that are none": (dict_of(a=net(_modules=b"]"), b=GOOD), "a network in it is damaged"),
    "a network within itself": (
        b"](}q\x00" + text("_modules") + dict_of(own=module(state=b"h\x00")) + b"se",
        "nested too deeply",
    ),
    "a list of networks without end": (
        SHARED + b"](" + module(state=b"h\x00") + b"q\x01" + b"h\x01" * 1000 + b"ee",
        "more entries than any checkpoint",
    ),
    "no tensors": (dict_of(ema=net()), "no tensors by name"),
    "numbers that are no bytes": (
        dict_of(w=tensor(of=b"ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R")),
        "a tensor in it is damaged",
    ),
    "bytes that are no file": (
        dict_of(w=tensor(of=b"ctorch.storage\n_load_from_bytes\n" + blob(bytes(50)) + b"\x85R")),
        "damaged",
    ),
    "bytes beyond the file": (
        b"ctorch.storage\n_load_from_bytes\nB\xff\xff\xff\xff" + bytes(50),
        "its pickle is cut off",
    ),
    "text beyond the file": (b"X\xff\xff\xff\x03" + bytes(50), "damaged"),
    "more text than any": (b"X\xff\xff\xff\x7f" + bytes(50), "more than 67,108,864 bytes of text"),
    "an opcode with a length": (b"\x96" + b"\x7f" * 8 + bytes(50), "opcode BYTEARRAY8"),
    "too few numbers": (
        dict_of(w=tensor(of=numbers(FLOATS[:9]).replace(whole(9), whole(24)))),
        "cut off",
    ),
    "a storage that is missing": (dict_of(w=tensor(of=numbers(keys=()))), "damaged"),
    "big-endian numbers": (dict_of(w=tensor(of=numbers(little=False))), "big-endian"),
    "a file in the bytes that executes": (
        dict_of(
            w=tensor(
                of=b"ctorch.storage\n_load_from_bytes\n"
                + blob(legacy(b"cos\nsystem\n(" + text("true") + b"tR"))
                + b"\x85R"
            )
        ),
        "os.system, which is no tensor",
    ),
    "a view beyond its numbers": (dict_of(w=tensor((5, 6), of=numbers())), "beyond its storage"),
    "an object of NumPy": (b"cnumpy\ndtype\n(" + text("O8") + b"tR", "unknown type"),
    "a number that is cut off": (
        SCALAR + DTYPE + ORDER + b"C\x04abcd\x86R",
        "number in it is damaged",
    ),
    "a number of no type": (SCALAR + b"NC\x08abcdefgh\x86R", "number in it is damaged"),
    "an order that is none": (SCALAR + DTYPE + whole(3) + b"b", "number in it is damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_snapshot_is_refused(opened, name, tmp_path):
    content, said = HOSTILE[name]
    with pytest.raises(UsageError, match=said):
        opened(content)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_the_numbers_of_a_snapshot_are_not_read(tmp_path):
    data = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    parts = {f"w{i}": parameter(data, (200_000,), (1,)) for i in range(8)}
    path = write(tmp_path / "x.pkl", dict_of(ema=net(_parameters=dict_of(**parts))))
    open_container(path)
    tracemalloc.start()
    group = open_container(path).groups["ema"]
    assert tracemalloc.get_traced_memory()[1] < 500_000
    copies = [np.array(group[name]) for name in group]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * path.stat().st_size
    assert all((copy == data).all() for copy in copies)


def test_lists_are_refused_where_they_are_no_attributes(opened):
    with pytest.raises(UsageError, match="no tensors by name"):
        opened(list_of(whole(1)))
