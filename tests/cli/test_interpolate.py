"""`python sample.py --interpolate A B` and `--shared_latents`: pictures of the latent space, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

DIGIT = 64 + 2  # pixels a digit takes in a grid, with its margin


@pytest.fixture
def picture(tmp_path):
    """picture("a.png", size) -> path of a grey gradient."""

    def write(name, size=8):
        values = np.linspace(0, 255, size * size).reshape(size, size).astype(np.uint8)
        Image.fromarray(values if name.startswith("a") else values.T).save(tmp_path / name)
        return tmp_path / name

    return write


def test_a_row_from_one_picture_to_another(invoke, trained, picture, tmp_path):
    a, b, out = picture("a.png"), picture("b.png", 20), tmp_path / "out"
    result = invoke("sample", "--ckpt", trained, "--interpolate", a, b, "--interpolate_steps", 3, "--out", out)
    assert result.code == 0, result.err
    path = out / "interpolate_a_b_t10_n3_step10_ema_seed0_steps20.png"
    assert str(path) in result.out
    with Image.open(path) as image:
        row = np.asarray(image)
    assert row.shape == (DIGIT + 2, 5 * DIGIT + 2)
    np.testing.assert_array_equal(row[2:66:8, 2:66:8], np.asarray(Image.open(a)))  # the pictures stand at the ends
    record = json.loads(path.with_suffix(".json").read_text())
    wanted = {"checkpoint_step": 10, "weights": "ema", "t": 10, "steps": 20, "seed": 0, "lambdas": [0.0, 0.5, 1.0]}
    assert record.items() >= wanted.items()
    assert record["images"] == [str(a), str(b)]


def test_little_noise_leaves_the_pictures_nearly_as_they_are(invoke, trained, picture, tmp_path):
    """t = 0 of 20 steps is a noise of 0.01 (β_0 = 1e-4), a level or so; ten steps of training cannot spoil it much."""
    argv = ["--interpolate", picture("a.png"), picture("b.png"), "--interpolate_t", 0, "--interpolate_steps", 2]
    assert invoke("sample", "--ckpt", trained, *argv, "--out", tmp_path / "out").code == 0
    row = np.asarray(Image.open(next((tmp_path / "out").glob("*.png"))))[2:66:8].astype(int)
    digits = [row[:, 2 + i * DIGIT : 66 + i * DIGIT : 8] for i in range(4)]
    assert np.abs(digits[0] - digits[1]).max() < 12
    assert np.abs(digits[3] - digits[2]).max() < 12
    assert np.abs(digits[0] - digits[3]).max() > 100


def test_samples_that_share_a_latent(invoke, trained, tmp_path):
    result = invoke("sample", "--ckpt", trained, "--shared_latents", "--out", tmp_path)
    assert result.code == 0, result.err
    path = tmp_path / "shared_latents_step10_ema_seed0_steps20.png"
    assert str(path) in result.out
    with Image.open(path) as image:
        assert image.size == (9 * DIGIT + 2, 4 * DIGIT + 2)
    assert json.loads(path.with_suffix(".json").read_text())["t"] == [19, 14, 9, 4]


def test_by_default_the_row_lies_beside_the_samples_of_the_run(invoke, copied, picture):
    argv = ["--interpolate", picture("a.png"), picture("b.png"), "--interpolate_steps", 2, "--steps", 2]
    assert invoke("sample", "--ckpt", copied, *argv).code == 0
    assert (copied / "generated" / "interpolate_a_b_t1_n2_step10_ema_seed0_steps2.png").exists()


def test_pictures_that_cannot_be_used_are_refused(refused, trained, picture, tmp_path):
    a = picture("a.png")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    small = picture("small.png", 5)
    flags = ["--ckpt", trained, "--out", tmp_path / "out", "--interpolate"]
    refused("sample", *flags, a, tmp_path / "none.png", says=["there is no file", "none.png"])
    refused("sample", *flags, tmp_path, a, says=["there is no file"])
    refused("sample", *flags, text, a, says=["text.png cannot be read", "not an image"])
    refused("sample", *flags, a, small, says=["small.png is 5x5", "8x8", "give a larger one"])
    assert not (tmp_path / "out").exists()


def test_a_bad_request_is_refused(refused, trained, picture):
    a, b = picture("a.png"), picture("b.png")
    flags = ["--ckpt", trained, "--interpolate"]
    refused("sample", *flags, a, b, "--interpolate_t", 20, says=["t is 20", "0 (least noise) to 19"])
    refused("sample", *flags, a, b, "--steps", 5, "--interpolate_t", 5, says=["t is 5", "to 4"])
    refused("sample", *flags, a, b, "--interpolate_t", -1, says=["--interpolate_t=-1", "at least 0"])
    refused("sample", *flags, a, b, "--interpolate_steps", 1, says=["--interpolate_steps=1", "at least 2"])
    refused("sample", *flags, a, says=["needs two image files", "--interpolate a.png b.png"])
    refused("sample", *flags, a, "--seed", 1, says=["needs two image files"])
    refused("sample", "--ckpt", trained, f"--interpolate={a}", says=["needs two image files"])
    refused("sample", *flags, a, b, "c.png", says=["Unexpected argument 'c.png'"])
