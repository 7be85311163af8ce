"""Files of latents: reading back what was written, and refusing what a decoder cannot take."""

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import latent_file
from ddpm_jax.evaluation.coding import Latents

CODEBOOK = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
CODES = np.random.default_rng(1).integers(0, 16, (5, 3, 2), np.int32)
Z = CODEBOOK[CODES]


def make_latents(arrays, codebook=None):
    return latent_file.decodable("mine.npz", arrays, channels=4, codebook=codebook)


def test_what_is_written_is_read_back(tmp_path):
    path, names = tmp_path / "z.npz", ["a.png", "\u00fc/b c.jpg"]
    found = Latents(Z[:2], log_variance=-Z[:2])
    latent_file.write(
        path, found, names=names, kind="vae", first_stage="ab" * 32, made_by="runs/vae, step 1"
    )
    arrays = latent_file.read(path)
    assert arrays.keys() == {"latents", "log_variance", "names", "kind", "first_stage", "made_by"}
    np.testing.assert_array_equal(arrays["latents"], Z[:2])
    np.testing.assert_array_equal(arrays["log_variance"], -Z[:2])
    assert (arrays["names"].tolist(), str(arrays["kind"])) == (names, "vae")


def test_latents_of_other_weights_are_refused_and_a_file_that_says_nothing_of_weights_is_believed():
    theirs = {"first_stage": np.array("cd" * 32), "made_by": np.array("runs/a, step 1")}
    latent_file.check_made_by("z.npz", theirs, first_stage="cd" * 32, what="runs/b")
    latent_file.check_made_by("z.npz", {}, first_stage="ab" * 32, what="runs/b")
    with pytest.raises(
        UsageError,
        match=r"another first stage \(runs/a, step 1\), cdcdcdcdcdcd\.\.\., than runs/b, abab",
    ):
        latent_file.check_made_by("z.npz", theirs, first_stage="ab" * 32, what="runs/b")


def test_codes_are_looked_up_and_may_have_their_vectors_beside_them():
    for arrays in ({"codes": CODES}, {"codes": CODES, "latents": Z}, {"latents": Z}):
        np.testing.assert_array_equal(make_latents(arrays, CODEBOOK), Z)
    assert make_latents({"latents": Z.astype(np.float64)}).dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "codebook", "message"),
    [
        ({"pixels": Z}, None, "has no 'latents', but 'pixels'"),
        ({}, CODEBOOK, "has no 'latents' or 'codes', but nothing"),
        (
            {"latents": Z[..., :3]},
            None,
            r"float32 \[5, 3, 2, 3\]: this decoder takes float32 \[N, h, w, 4\]",
        ),
        ({"latents": Z[0]}, None, r"float32 \[3, 2, 4\]"),
        ({"latents": Z[:0]}, None, r"float32 \[0, 3, 2, 4\]"),
        ({"latents": Z.astype(int)}, None, r"int64 \[5, 3, 2, 4\]"),
        ({"latents": Z * np.nan}, None, "not finite"),
        ({"codes": CODES}, None, "this first stage has no codebook"),
        ({"codes": CODES + 16}, CODEBOOK, r"this codebook has 0\.\.15"),
        ({"codes": CODES - 16}, CODEBOOK, r"this codebook has 0\.\.15"),
        ({"codes": CODES[0]}, CODEBOOK, r"int32 \[3, 2\]: integers"),
        ({"codes": CODES * 1.0}, CODEBOOK, r"float64 \[5, 3, 2\]: integers"),
        ({"codes": CODES, "latents": Z + 1}, CODEBOOK, "not the codes beside them"),
    ],
)
def test_arrays_that_are_no_latents_of_the_decoder_are_refused(arrays, codebook, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_latents(arrays, codebook)
    assert "mine.npz" in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    whole, path = tmp_path / "whole.npz", tmp_path / "z.npz"
    latent_file.write(whole, Latents(Z), names=["a"] * 5, kind="ae", first_stage="0", made_by="")
    data = whole.read_bytes()
    np.save(tmp_path / "array.npy", Z)
    for content in (
        b"",
        b"no archive",
        data[:-100],
        data[:300] + b"?" + data[301:],
        (tmp_path / "array.npy").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"z\.npz is not an NPZ file, or damaged"):
            latent_file.read(path)
    with pytest.raises(UsageError, match=r"There is no file .*none\.npz"):
        latent_file.read(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["album/a.png", "b", "c.d.jpg"], ["a", "b", "c.d"]),
        (["../../etc/passwd", "..", "/"], ["passwd", "..", ""]),
        (["a\x00b", "\x1b[2J", "x\u202e", "a\nb"], ["a_b", "_[2J", "x_", "a_b"]),
        ("one", []),
        ([1.0, 2.0], []),
        ([["a"]], []),
    ],
)
def test_names_of_a_strangers_file_can_be_those_of_files(names, stems):
    assert latent_file.picture_names({"names": np.array(names)}) == stems


def test_a_file_may_have_no_names():
    assert latent_file.picture_names({}) == []
