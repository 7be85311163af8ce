"""State dicts written without PyTorch, read by PyTorch and by our own reader."""

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.archives import BadArchive
from ddpm_jax.interop.tensor_store import open_tensors
from ddpm_jax.interop.torch_writing import write_torch

RNG = np.random.default_rng(0)
TENSORS = {
    "out.0.weight": RNG.normal(size=(3, 2, 1, 5)).astype(np.float32),
    "transposed": RNG.normal(size=(3, 4)).astype(np.float32).T,
    "a scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "halves": RNG.normal(size=300).astype(np.float16),
    "bfloat16": RNG.normal(size=7).astype(ml_dtypes.bfloat16),
    "double": RNG.normal(size=2),
    "whole": np.array([-(2**40), 3]),
    "üß": np.array([True, False]),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pt"
    write_torch(path, TENSORS)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_loads_it_as_weights_only(file, mmap):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    loaded = torch.load(file, weights_only=True, mmap=mmap)
    assert list(loaded) == list(TENSORS)
    for name, value in TENSORS.items():
        tensor = loaded[name]
        assert tensor.shape == np.shape(value), name
        if name == "bfloat16":
            assert tensor.dtype is torch.bfloat16
            tensor, value = tensor.float(), value.astype(np.float32)
        assert tensor.numpy().dtype == value.dtype, name
        np.testing.assert_array_equal(tensor.numpy(), value, err_msg=name)


def test_our_reader_finds_the_same(file):
    read = open_tensors(file)
    assert list(read) == list(TENSORS)
    for name, value in TENSORS.items():
        assert read[name].dtype == value.dtype, name
        np.testing.assert_array_equal(read[name], value, err_msg=name)


def test_the_same_tensors_make_the_same_file(file, tmp_path):
    write_torch(tmp_path / "again.pt", TENSORS)
    assert (tmp_path / "again.pt").read_bytes() == file.read_bytes()


def test_nothing_is_overwritten_and_other_types_are_refused(file, tmp_path):
    with pytest.raises(FileExistsError):
        write_torch(file, {})
    with pytest.raises(BadArchive, match="'z' is of type complex64, which PyTorch lacks"):
        write_torch(tmp_path / "other.pt", {"z": np.zeros(1, np.complex64)})
