"""Untrusted archives: valid ones are read, others refused before memory is allocated."""

import io
import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.archives import BadArchive, Header, map_npy, read_npz, read_safetensors

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
ARRAYS = {
    "images": IMAGES,
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "number": np.array(1.5),
    "nothing": np.zeros((0, 4), np.float32),
    "text": np.array(["ä", "\x1b"]),
}


def npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_STORED):
    """An archive of (name, bytes), whatever these are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def array_header(shape, descr="'<f4'"):
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def tensors(index, rest=b""):
    """A safetensors file with this header, given as a dict or as text."""
    text = index if isinstance(index, str) else json.dumps(index)
    return struct.pack("<Q", len(text)) + text.encode() + rest


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_out_as_numpy_saved_them(save):
    found = read_npz(npz(save, **ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    only = read_npz(npz(save, **ARRAYS), {"images": Header(np.dtype(np.uint8), (None, 3, 4))})
    assert list(only) == ["images"]


@pytest.mark.parametrize("name", ["images", "columns"])
def test_a_mapped_file_is_the_array_and_cannot_be_written_to(tmp_path, name):
    path, array = tmp_path / "a.npy", ARRAYS[name]
    path.write_bytes(npy(array))
    mapped = map_npy(path, Header(array.dtype, array.shape))
    np.testing.assert_array_equal(mapped, array)
    assert not mapped.flags.writeable


def test_a_mapped_file_that_is_cut_or_another_is_refused(tmp_path):
    path, expected = tmp_path / "a.npy", Header(IMAGES.dtype, IMAGES.shape)
    for content, words in (
        (npy(IMAGES)[:-1], "tells of 24 bytes, and 23 follow"),
        (npy(IMAGES.astype(np.int8)), r"is int8 \[2, 3, 4\], where uint8 \[2, 3, 4\] is expected"),
        (array_header((10**12,)), r"where uint8 \[2, 3, 4\] is expected"),
        (b"", "damaged header"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadArchive, match=words):
            map_npy(path, expected)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (array_header((10**12,)) + b"0" * 64, "tells of 4,000,000,000,000 bytes, and 64 follow"),
        (array_header((10**30, 10**30)), "tells of 4,000"),
        (array_header((-1, -16)) + b"0" * 64, "impossible shape"),
        (array_header((10**30, 0)), "impossible shape"),
        (array_header((2,), "'|O'") + b"cos\nsystem\n", "Python objects, which are never read"),
        (array_header((2,), "[('a', '|O')]"), "Python objects"),
        (array_header((10**12,), "'|S0'"), "impossible shape or type"),
        (array_header((1,), "('<f4', (10000000000,))"), "damaged header"),
        (array_header("(1,"), "damaged header"),
        (array_header("(__import__('os').getpid(),)"), "damaged header"),
        (npy_header("-" * 9000 + "1"), "damaged header"),
        (npy_header("(" * 9000), "damaged header"),
        (npy_header(" " * 20_000), "header of an array in it has 20,000 bytes"),
        (b"\x93NUMPY\x07\x00", "version"),
        (b"text", "damaged header"),
        (b"", "damaged header"),
        (npy(IMAGES)[:-1], "tells of 24 bytes, and 23 follow"),
        (npy(IMAGES) + b"0", "tells of 24 bytes, and 25 follow"),
        (array_header((1,), "'<U1'") + b"\xff\xff\xff\xff", "text that is none"),
    ],
)
def test_a_member_that_is_not_what_its_header_says_is_refused(member, words):
    with pytest.raises(BadArchive, match=words):
        read_npz(zipped([("a.npy", member)]))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_flipped_byte_and_every_cut_is_refused_or_harmless(save):
    """The directory's names and dates have no checksum: a changed one is harmless."""
    whole = npz(save, images=IMAGES)
    expected = {"images": Header(IMAGES.dtype, IMAGES.shape)}
    sentences = []
    damaged = [whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :] for i in range(len(whole))]
    for data in damaged + [whole[:i] for i in range(len(whole))]:
        try:
            np.testing.assert_array_equal(read_npz(data, expected)["images"], IMAGES)
        except BadArchive as error:
            sentences.append(str(error))
    assert len(sentences) > len(whole) + len(whole) // 2
    assert "\n" not in "".join(sentences)


def test_what_inflates_a_thousand_times_is_refused_without_the_memory():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(array_header((300 * 2**18,)))
        for _ in range(300):
            member.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(BadArchive, match=r"would inflate to 314,572,\d{3}"):
        read_npz(file.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_a_directory_that_lies_is_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped([("a.npy", npy(IMAGES)), ("a.npy", npy(IMAGES))])
    with pytest.raises(BadArchive, match="stands twice"):
        read_npz(twice)
    with pytest.raises(BadArchive, match="stands twice"):
        read_npz(zipped([("a.npy", npy(IMAGES)), ("a", npy(IMAGES))]))
    with pytest.raises(BadArchive, match="10,001 members"):
        read_npz(zipped([(f"{i}.npy", b"") for i in range(10_001)]))
    with pytest.raises(BadArchive, match="compressed in another way"):
        read_npz(zipped([("a.npy", npy(IMAGES))], zipfile.ZIP_LZMA))
    encrypted = bytearray(npz(a=IMAGES))
    encrypted[encrypted.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BadArchive, match="encrypted"):
        read_npz(bytes(encrypted))


def test_what_is_missing_or_of_another_type_than_expected_is_named():
    data = npz(**ARRAYS)
    with pytest.raises(BadArchive, match="no array 'index', but 'images', 'columns'"):
        read_npz(data, {"index": Header(np.dtype(np.int64), (2,))})
    with pytest.raises(
        BadArchive, match=r"'images' is uint8 \[2, 3, 4\], where uint8 \[any, 3, 3\] is expected"
    ):
        read_npz(data, {"images": Header(np.dtype(np.uint8), (None, 3, 3))})
    with pytest.raises(BadArchive, match=r"'text' is text \[2\], where float64 is expected"):
        read_npz(data, {"text": Header(np.dtype(float), None)})


def test_safetensors_of_every_type_are_read_exactly():
    """BF16 is the upper half of a float32: 1.0 is 0x3f80."""
    rest = struct.pack("<2H2e2f2dq", 0x3F80, 0xC040, 1.5, -2.5, 3.5, 4.5, 5.5, 6.5, -7)
    index = {
        "__metadata__": {"format": "pt"},
        "bf16": entry("BF16", (2,), (0, 4)),
        "f16": entry("F16", (1, 2), (4, 8)),
        "f32": entry("F32", (2, 1), (8, 16)),
        "f64": entry("F64", (2,), (16, 32)),
        "i64": entry("I64", (), (32, 40)),
        "none": entry("F32", (0, 3), (40, 40)),
    }
    found = read_safetensors(tensors(index, rest))
    assert {name: array.dtype for name, array in found.items()} == {
        "bf16": ml_dtypes.bfloat16,
        "f16": np.float16,
        "f32": np.float32,
        "f64": np.float64,
        "i64": np.int64,
        "none": np.float32,
    }
    values = {name: array.astype(float).tolist() for name, array in found.items()}
    assert values["bf16"] == [1.0, -3.0]
    assert values["f16"] == [[1.5, -2.5]]
    assert values["f32"] == [[3.5], [4.5]]
    assert values["f64"] == [5.5, 6.5]
    assert values["i64"] == -7
    assert found["none"].shape == (0, 3)


def test_a_file_of_the_format_s_own_package_is_read_alike():
    numpy = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed: pip install -e '.[parity]'"
    )
    rng = np.random.default_rng(0)
    arrays = {f"layer{i}.weight": rng.normal(size=(i, 3)).astype(np.float32) for i in range(1, 5)}
    found = read_safetensors(numpy.save(arrays, metadata={"made": "here"}))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin as"),
        (b"\x80\x02}q\x00.", "does not begin as"),
        (struct.pack("<Q", 2**63) + b"{}", "does not begin as"),
        (struct.pack("<Q", 10) + b"{}", "does not begin as"),
        (tensors("[]"), "does not begin as"),
        (tensors("{x}"), "header is damaged"),
        (tensors('{"a":' * 20_000 + "1" + "}" * 20_000), "header is damaged"),
        (tensors('{"a": %s}' % ("9" * 5000)), "header is damaged"),
        (tensors('{"a": 1, "a": 1}'), "stands twice"),
        (tensors('{"a": {"dtype": "F32", "dtype": "F16"}}'), "stands twice"),
        (tensors({"a": 1}), "header of its tensor 'a' is damaged"),
        (tensors({"a": {**entry(), "dtype": [1]}}, b"0000"), "header of its tensor 'a' is damaged"),
        (tensors({"a": entry(shape=(True,))}, b"0000"), "header of its tensor 'a' is damaged"),
        (tensors({"a": entry(shape=(1.0,))}, b"0000"), "header of its tensor 'a' is damaged"),
        (tensors({"a": entry(shape=(-1, -1))}, b"0000"), "header of its tensor 'a' is damaged"),
        (tensors({"a": entry(offsets=(0, 4, 8))}, b"0000"), "header of its tensor 'a' is damaged"),
        (
            tensors({"a": entry("F8_E4M3", offsets=(0, 1))}, b"0"),
            "'a' is of F8_E4M3, where one of BOOL, U8,",
        ),
        (tensors({"a": entry()}, b"000"), "take 4 bytes, and 3 follow"),
        (tensors({"a": entry()}, b"00000"), "take 4 bytes, and 5 follow"),
        (tensors({"a": entry(shape=(10**12,))}, b"0000"), "'a' does not lie where"),
        (tensors({"a": entry(offsets=(4, 8))}, b"0" * 8), "'a' does not lie where"),
        (tensors({"a": entry(), "b": entry()}, b"0000"), "does not lie where"),
        (
            tensors({"a": entry(offsets=(0, 4)), "b": entry(offsets=(2, 6))}, b"0" * 6),
            "'b' does not lie where",
        ),
        (tensors({"a": entry(offsets=(4, 0))}, b"0000"), "'a' does not lie where"),
        (tensors({"a": entry(shape=(10**30, 0), offsets=(0, 0))}), "impossible shape"),
        (
            tensors({str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(10_001)}),
            "10,001 tensors",
        ),
        (tensors({"\x1b[31m": 1}), r"'\\x1b\[31m'"),
    ],
)
def test_a_damaged_safetensors_file_is_refused(data, words):
    with pytest.raises(BadArchive, match=words):
        read_safetensors(data)


def test_every_flipped_byte_of_a_safetensors_header_is_refused_or_another_name_or_type():
    whole = tensors({"a": entry(), "b": entry("I32", (1,), (4, 8))}, b"01234567")
    refused = 0
    for i in range(len(whole) - 8):
        try:
            found = read_safetensors(whole[:i] + bytes([whole[i] ^ 0x04]) + whole[i + 1 :])
            assert sum(array.nbytes for array in found.values()) == 8
        except BadArchive:
            refused += 1
    assert refused > 100
