"""`python sample.py --init_image` and `--inpaint`: pictures come in as training reads them, and
what is kept is."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

SIZE = (24, 16)  # of the photo: cut to the middle 16x16, shrunk to 8x8


def read(out):
    with np.load(next(out.glob("samples-*.npz"))) as shard:
        return shard["images"]


@pytest.fixture
def photo(tmp_path):
    """A digit of 16x16 pixels in the middle of a wider picture, every pixel of the model four equal
    ones of it."""
    digit = np.round(load_digits().images[3] * 255 / 16).astype(np.uint8)
    wide = np.zeros(SIZE[::-1], np.uint8)
    wide[:, 4:20] = np.kron(digit, np.ones((2, 2), np.uint8))
    Image.fromarray(wide).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", digit


@pytest.fixture
def mask(tmp_path):
    """White in the upper half."""
    half = np.zeros(SIZE[::-1], np.uint8)
    half[:8] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.mark.slow
def test_at_little_strength_the_picture_stays(invoke, trained, photo, tmp_path):
    path, digit = photo
    errors = []
    for strength in (0.05, 0.9):
        out = tmp_path / str(strength)
        argv = [
            "--ckpt",
            trained,
            "--num_samples",
            4,
            "--init_image",
            path,
            "--strength",
            strength,
            "--out",
            out,
        ]
        assert invoke("sample", *argv).code == 0
        errors.append(np.sqrt(np.mean(np.square(read(out)[..., 0].astype(float) - digit))))
        with Image.open(out / "grid.png") as grid:  # the picture first, then what was made from it
            np.testing.assert_array_equal(np.asarray(grid)[24 : 24 + 64 : 8, 2 : 2 + 64 : 8], digit)
            assert grid.size[0] >= 68 + 16 + 2 * 66 + 2
            assert grid.size[1] == 22 + 2 * 66 + 2
    assert errors[0] < 0.2 * errors[1]
    record = json.loads((tmp_path / "0.9" / "manifest.json").read_text())
    assert record.items() >= {"steps": 18, "strength": 0.9, "init_image": str(path)}.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--steps", 10, "--resamplings", 2, "--jump", 2], ["--sampler", "dpmpp_2m", "--steps", 5]],
    ids=["repaint", "dpmpp_2m"],
)
def test_inpainting_keeps_what_is_black_in_the_mask(invoke, trained, photo, mask, tmp_path, flags):
    path, digit = photo
    argv = [
        "--ckpt",
        trained,
        "--num_samples",
        4,
        "--inpaint",
        path,
        "--mask",
        mask,
        "--out",
        tmp_path / "o",
    ]
    assert invoke("sample", *argv, *flags).code == 0
    images = read(tmp_path / "o")[..., 0]
    np.testing.assert_array_equal(images[:, 4:], np.broadcast_to(digit[4:], (4, 4, 8)))
    assert np.any(images[0, :4] != images[1, :4])  # painted again, each in its own way
    record = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert record["sampler"] == ("repaint" if "--jump" in flags else "dpmpp_2m")
    for name, file in (("inpaint", path), ("mask", mask)):
        assert record[f"{name}_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.full
def test_another_picture_under_the_same_name_gives_other_images_or_a_sentence(
    invoke, refused, copied, photo
):
    path, _ = photo
    argv = [
        "--ckpt",
        copied,
        "--num_samples",
        1,
        "--steps",
        5,
        "--strength",
        0.4,
        "--init_image",
        path,
    ]
    outs = []
    for _ in range(2):
        assert invoke("sample", *argv).code == 0
        outs.append(max((copied / "generated").iterdir(), key=lambda out: out.stat().st_mtime_ns))
        Image.eval(Image.open(path), lambda level: 255 - level).save(path)
    assert outs[0] != outs[1]  # where no --out is given
    Image.eval(Image.open(path), lambda level: level // 2).save(path)
    refused(
        "sample",
        *argv,
        "--out",
        outs[0],
        says=["made otherwise (init_image_sha256 is ", " there, "],
    )


@pytest.mark.full
def test_what_cannot_be_is_refused(refused, trained, photo, mask, tmp_path):
    path, _ = photo
    small = tmp_path / "small.png"
    Image.new("L", (8, 16)).save(small)
    for flags, says in [
        (["--inpaint", path], ["inpaint needs mask"]),
        (["--inpaint", path, "--mask", small], ["is 8x16", "is 24x16", "of the picture's size"]),
        (["--inpaint", path, "--mask", path.with_name("none.png")], ["mask: there is no file"]),
        (["--inpaint", path, "--mask", mask, "--jump", 21], ["jump is 21", "choose 1 to 20"]),
        (
            ["--inpaint", path, "--mask", mask, "--sampler", "ddim", "--jump", 2],
            ["jump belongs to RePaint"],
        ),
        (
            ["--inpaint", path, "--mask", mask, "--sampler_options", "eta=1"],
            ["sampler_options with inpaint", "RePaint"],
        ),
        (["--inpaint", path, "--mask", mask, "--init_image", path], ["two ways to use a picture"]),
        (["--mask", mask], ["mask belongs to inpaint"]),
        (["--strength", 0.5], ["strength says how much of init_image"]),
        (["--init_image", path, "--strength", 0], ["strength is 0", "above 0"]),
        (
            ["--init_image", path, "--strength", "half"],
            ["strength is 'half'", "number above 0 and at most 1"],
        ),
        (["--init_image", tmp_path / "none.png"], ["init_image: there is no file"]),
        (["--init_image", path, "--shared_latents"], ["edit no picture"]),
    ]:
        refused("sample", "--ckpt", trained, *flags, says=says)
