"""Files of `torch.save`, read without PyTorch: equal bits, and nothing but tensors."""

import io
import random
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.archives import BadArchive
from ddpm_jax.errors import UsageError
from ddpm_jax.interop import torch_pickle
from ddpm_jax.interop.tensor_store import open_tensors

from .pickled import (
    FLOATS,
    STORAGE,
    state_dict,
    storage,
    tensor,
    text,
    whole,
    write_legacy,
    write_zip,
)


@pytest.fixture(params=[write_zip, write_legacy])
def write(request, tmp_path):
    return lambda content: request.param(tmp_path / "weights.bin", content)


def test_views_of_a_storage(write):
    grid = FLOATS.reshape(4, 6)
    wanted = {
        "whole": (tensor(), grid),
        "transposed": (tensor((6, 4), (1, 6)), grid.T),
        "part": (tensor((2, 3), (6, 1), 7), grid[1:3, 1:4]),
        "scalar": (tensor((), (), 5), np.float32(5)),
        "empty": (tensor((0, 3), (3, 1)), np.zeros((0, 3), np.float32)),
        "parameter": (b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88)tR", grid),
    }
    content = b"}(" + b"".join(text(name) + value for name, (value, _) in wanted.items()) + b"u"
    found = open_tensors(write(content))
    assert set(found) == set(wanted)
    for name, (_, value) in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)
        assert not found[name].flags.writeable


def test_a_checkpoint_of_training_has_its_weights_under_state_dict(write):
    callbacks = (
        b"}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}" + text("x") + b"Nss"
    )
    score = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(" + text("f8") + b"K\x00K\x01tR(NNtbNtR"
    )
    content = b"}(" + text("epoch") + whole(3) + text("callbacks") + callbacks
    content += text("best") + score + text("state_dict") + state_dict(tensor()) + b"u"
    assert list(open_tensors(write(content))) == ["w"]


def test_metadata_of_a_state_dict_is_passed_over(write):
    content = (
        b"ccollections\nOrderedDict\n)R" + text("w") + tensor() + b"s}" + text("_metadata") + b"}sb"
    )
    assert list(open_tensors(write(content))) == ["w"]


BEYOND = "beyond its storage"
HOSTILE = {
    "a call of the system": (b"cos\nsystem\n(" + text("true") + b"tR", "os.system, which is no tensor"),
    "the same in the new form": (text("os") + text("system") + b"\x93(" + text("true") + b"tR", "os.system"),
    "eval": (b"cbuiltins\neval\n(" + text("1") + b"tR", "builtins.eval"),
    "a name with a dot": (text("collections") + text("OrderedDict.fromkeys") + b"\x93(" + text("ab") + b"tR", "OrderedDict.fromkeys"),
    "globals of a function": (text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93", "__globals__"),
    "a module as a tuple": (b")" + text("x") + b"\x93", "damaged"),
    "an instance": (b"(ios\nsystem\n", "opcode INST"),
    "an object": (b"(cos\nsystem\n" + text("true") + b"o", "os.system"),
    "an extension": (b"\x82\x01", "opcode EXT1"),
    "a buffer of any size": (b"\x96" + struct.pack("<Q", 1 << 50), "opcode BYTEARRAY8"),
    "a name without end": (b"c" + b"x" * 5000 + b"\nsystem\n", "damaged"),
    "a call of text": (text("os") + b")R", "calls what is no function"),
    "a storage as a function": (STORAGE + b")R", "damaged"),
    "state of a tensor": (state_dict(tensor() + b"}b"), "changes the state"),
    "another storage": (state_dict(tensor(of=storage(kind=b"cos\nsystem\n"))), "os.system"),
    "a storage that is a tensor": (state_dict(tensor(of=tensor())), "damaged tensor"),
    "another persistent id": (text("a module") + b"Q", "refers to what is no storage"),
    "beyond the storage": (state_dict(tensor(offset=1)), BEYOND),
    "stride beyond the storage": (state_dict(tensor((4, 6), (7, 1))), BEYOND),
    "a repeated number": (state_dict(tensor((1 << 30, 1 << 30), (0, 0))), BEYOND),
    "before the storage": (state_dict(tensor(offset=-1)), "damaged tensor"),
    "a negative stride": (state_dict(tensor((24,), (-1,), 23)), "damaged tensor"),
    "a negative side": (state_dict(tensor((-1,), (1,))), "damaged tensor"),
    "too few strides": (state_dict(tensor((4, 6), (1,))), "damaged tensor"),
    "sides that are text": (state_dict(tensor()).replace(whole(6), text("a"), 1), "damaged"),
    "a storage too large": (state_dict(tensor(of=storage(size=25))), "cut off"),
    "a storage of negative size": (state_dict(tensor(of=storage(size=-1))), "no storage"),
    "a missing storage": (state_dict(tensor(of=storage("7"))), "storage '7'|no"),
    "two types of one storage": (
        b"}(" + text("a") + tensor() + text("b")
        + tensor(of=storage(size=24, kind=b"ctorch\nIntStorage\n")) + b"u",
        "in two ways",
    ),
    "a tuple as key": (b"})" + tensor() + b"s", "neither text nor numbers"),
    "a number as name": (b"}" + whole(1) + tensor() + b"s", "no tensors by name"),
    "no tensors": (state_dict(whole(1)), "no tensors by name|nothing uses"),
    "a list": (b"]" + tensor() + b"a", "no state dict"),
    "an empty stack": (b"0", "opcode POP"),
    "a mark in a tuple": (b"(\x85", "damaged"),
    "an unknown memo": (b"h\x07", "damaged"),
    "items without a mark": (b"}u", "damaged"),
    "half a pair": (b"}(" + text("a") + b"u", "no dict"),
    "a quantised tensor": (state_dict(tensor(by=b"ctorch._utils\n_rebuild_qtensor\n")), "_rebuild_qtensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_tensor_is_refused(write, name):
    content, said = HOSTILE[name]
    path = write(content)
    with pytest.raises(UsageError, match=said) as error:
        open_tensors(path)
    assert str(path) in str(error.value)


def test_a_deeply_nested_pickle_harms_nothing(write):
    nested = b")" + b"\x85" * 50_000
    for content in (nested, b"}" + nested + b"Ns", nested + text("x") + b"\x93", nested + b")R"):
        with pytest.raises(UsageError):
            open_tensors(write(content))


def test_an_empty_tensor_of_an_impossible_shape_is_refused(write):
    path = write(
        b"}(" + text("w") + tensor() + text("v") + tensor([0] + [2**31 - 1] * 3, [0] * 4) + b"u"
    )
    with pytest.raises(UsageError, match="impossible shape"):
        open_tensors(path)


def test_a_memo_of_any_index_needs_no_memory():
    data = io.BytesIO(b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".")
    assert torch_pickle.load(data) is None


def test_a_pickle_without_end_is_refused():
    for data in (b"", b"\x80\x02N", b"\x80\x02X\xff\xff\xff\x7fab"):
        with pytest.raises(BadArchive):
            torch_pickle.load(io.BytesIO(data))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data": b"123"}, "cut off"),
        ({"b/data.pkl": b"N."}, "none of PyTorch"),
    ],
)
def test_zip_files_that_are_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        open_tensors(write_zip(tmp_path / "x.bin", state_dict(tensor()), **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"magic": 1}, "does not begin"),
        ({"version": 1}, "does not begin"),
        ({"little": False}, "big-endian"),
        ({"keys": ("0", "1")}, "nothing uses its storage '1'"),
        ({"keys": (0,)}, "no list of storages"),
        ({"keys": ()}, "storage '0' is missing"),
        ({"data": FLOATS[:9]}, "cut off"),
    ],
)
def test_legacy_files_that_are_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        open_tensors(write_legacy(tmp_path / "x.bin", state_dict(tensor()), **changes))


def test_damage_anywhere_is_refused_or_changes_only_numbers(write):
    """Each damaged file is read, or refused by our own error, and nothing else."""
    content = b"}(" + text("a") + tensor() + text("b") + tensor((6, 4), (1, 6)) + b"u"
    path = write(content)
    original, rng = path.read_bytes(), random.Random(13)
    for _ in range(500):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.choice((1, 4, 40))]
                case 2:
                    data[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
                case 3:
                    data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            tensors = open_tensors(path)
        except UsageError:
            continue
        for value in tensors.values():
            assert value.nbytes <= len(data)
            np.array(value)


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_pytorch_are_read_bit_for_bit(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    base = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    state = {f"as.{kind}": (base * 9).to(getattr(torch, kind)) for kind in (*DTYPES, "bool")}
    state |= {"t": base.T, "part": base[1:3, 2:6], "scalar": torch.tensor(2.5), "none": base[:0]}
    state |= {"parameter": torch.nn.Parameter(base), "shared": state["t"]}
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state |= {f"module.{name}": value for name, value in module.state_dict().items()}
    saved = {"state_dict": state, "epoch": 3, "lr": 0.1, "done": True, "optimizer": [{"a": (1, 2)}]}
    path = tmp_path / "weights.ckpt"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = open_tensors(path)
    assert set(found) == set(state)
    for name, value in state.items():
        value = value.detach()
        if value.dtype == torch.bfloat16:
            assert found[name].dtype == ml_dtypes.bfloat16
            value = value.view(torch.int16)
            np.testing.assert_array_equal(found[name].view(np.int16), value.numpy())
        else:
            assert found[name].dtype == value.numpy().dtype
            np.testing.assert_array_equal(found[name], value.numpy())


def test_state_dict_of_a_module_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "x.bin")
    assert set(open_tensors(tmp_path / "x.bin")) == set(module.state_dict())
    torch.save(module, tmp_path / "x.bin")
    with pytest.raises(UsageError, match=r"torch.nn.modules.container.Sequential, which is no"):
        open_tensors(tmp_path / "x.bin")
