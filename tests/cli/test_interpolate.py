"""sample.py's pictures of the latent space, and what is refused.

`--interpolate A B`, `--shared_latents`, `--interpolate_seeds`, `--reconstruct`.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

DIGIT = 88 + 2  # pixels a digit takes in a drawing, with its margin
TITLE = 22  # pixels of the labels above


def read_row(path):
    """The digits of a PNG of one row, int [N, 8, 8]."""
    with Image.open(path) as image:
        row = np.asarray(image).astype(int)[TITLE + 2 : TITLE + DIGIT : 11]
    return np.stack(
        [row[:, 2 + i * DIGIT : (i + 1) * DIGIT : 11] for i in range(row.shape[1] // DIGIT)]
    )


def read_record(path):
    return json.loads(path.with_suffix(".json").read_text())


@pytest.fixture
def picture(tmp_path):
    """picture("a.png", size) -> path of a grey gradient."""

    def write(name, size=8):
        values = np.linspace(0, 255, size * size).reshape(size, size).astype(np.uint8)
        Image.fromarray(values if name.startswith("a") else values.T).save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.slow
def test_a_row_from_one_picture_to_another(invoke, trained, picture, tmp_path):
    a, b, out = picture("a.png"), picture("b.png", 20), tmp_path / "out"
    result = invoke(
        "sample", "--ckpt", trained, "--interpolate", a, b, "--interpolate_steps", 3, "--out", out
    )
    assert result.code == 0, result.err
    (path,) = out.glob("interpolate_a_b_*_t10_n3_step10_ema_seed0_steps20.png")
    assert str(path) in result.out
    with Image.open(path) as image:
        row = np.asarray(image)
    assert row.shape == (TITLE + DIGIT + 2, 5 * DIGIT + 2)
    # the pictures stand at the ends
    np.testing.assert_array_equal(read_row(path)[0], np.asarray(Image.open(a)))
    for i in range(5):
        assert row[:TITLE, i * DIGIT : (i + 1) * DIGIT].min() < 128, "each under its label"
    record = read_record(path)
    wanted = {
        "checkpoint_step": 10,
        "weights": "ema",
        "t": 10,
        "steps": 20,
        "seed": 0,
        "lambdas": [0.0, 0.5, 1.0],
    }
    assert record.items() >= wanted.items()
    assert record["images"] == [str(a), str(b)]


@pytest.mark.full
def test_little_noise_leaves_the_pictures_nearly_as_they_are(invoke, trained, picture, tmp_path):
    """t = 0 of 20 steps is a noise of 0.01 (β_0 = 1e-4), a level or so; ten steps of training
    cannot spoil it much."""
    argv = [
        "--interpolate",
        picture("a.png"),
        picture("b.png"),
        "--interpolate_t",
        0,
        "--interpolate_steps",
        2,
    ]
    assert invoke("sample", "--ckpt", trained, *argv, "--out", tmp_path / "out").code == 0
    digits = read_row(next((tmp_path / "out").glob("*.png")))
    assert np.abs(digits[0] - digits[1]).max() < 12
    assert np.abs(digits[3] - digits[2]).max() < 12
    assert np.abs(digits[0] - digits[3]).max() > 100


@pytest.mark.slow
def test_samples_that_share_a_latent(invoke, trained, tmp_path):
    result = invoke("sample", "--ckpt", trained, "--shared_latents", "--out", tmp_path)
    assert result.code == 0, result.err
    path = tmp_path / "shared_latents_step10_ema_seed0_steps20.png"
    assert str(path) in result.out
    with Image.open(path) as image:
        names = image.size[0] - (9 * DIGIT + 2)
        assert 20 < names < DIGIT, "t stands before each row"
        assert image.size[1] == TITLE + 4 * DIGIT + 2
    assert read_record(path)["t"] == [19, 14, 9, 4]


@pytest.mark.full
def test_by_default_the_row_lies_beside_the_samples_of_the_run(invoke, copied, picture):
    argv = [
        "--interpolate",
        picture("a.png"),
        picture("b.png"),
        "--interpolate_steps",
        2,
        "--steps",
        2,
    ]
    assert invoke("sample", "--ckpt", copied, *argv).code == 0
    assert (
        len(
            list((copied / "generated").glob("interpolate_a_b_*_t1_n2_step10_ema_seed0_steps2.png"))
        )
        == 1
    )


@pytest.mark.full
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
    refused(
        "sample", *flags, a, b, "--interpolate_t", 20, says=["t is 20", "0 (least noise) to 19"]
    )
    refused("sample", *flags, a, b, "--steps", 5, "--interpolate_t", 5, says=["t is 5", "to 4"])
    refused(
        "sample",
        *flags,
        a,
        b,
        "--interpolate_t",
        -1,
        says=["interpolate_t is -1", "whole number in 0.."],
    )
    refused(
        "sample",
        *flags,
        a,
        b,
        "--interpolate_steps",
        1,
        says=["interpolate_steps is 1", "whole number in 2.."],
    )
    refused("sample", *flags, a, says=["--interpolate: expected 2 arguments"])
    refused("sample", *flags, a, "--seed", 1, says=["--interpolate: expected 2 arguments"])
    refused("sample", "--ckpt", trained, f"--interpolate={a}", says=["expected 2 arguments"])
    refused("sample", *flags, a, b, "c.png", says=["Unexpected argument 'c.png'"])


@pytest.mark.slow
def test_pictures_of_one_name_do_not_overwrite_each_others_row(invoke, trained, picture, tmp_path):
    """Neither those of another folder nor the same file after a change; asked for again, a row is
    the same."""
    a, b, out = picture("a.png"), picture("b.png"), tmp_path / "out"
    (tmp_path / "other").mkdir()
    elsewhere = a.rename(tmp_path / "other" / "a.png")
    a = picture("a.png")
    flags = [
        "--ckpt",
        trained,
        "--interpolate_steps",
        2,
        "--steps",
        2,
        "--out",
        out,
        "--interpolate",
    ]
    assert invoke("sample", *flags, a, b).code == 0
    (first,) = out.glob("*.png")
    assert invoke("sample", *flags, elsewhere, b).code == 0
    assert len(list(out.glob("*.png"))) == 2
    kept = first.read_bytes()
    Image.open(b).save(a)
    assert invoke("sample", *flags, a, b).code == 0
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.json"))) == 3
    assert first.read_bytes() == kept
    assert invoke("sample", *flags, a, b).code == 0
    assert len(list(out.glob("*.png"))) == 3


@pytest.mark.full
def test_the_row_of_another_run_is_not_overwritten(invoke, refused, trained, copied, tmp_path):
    flags = [
        "--interpolate_seeds",
        "1,2",
        "--interpolate_steps",
        2,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    ]
    assert invoke("sample", "--ckpt", trained, *flags).code == 0
    assert invoke("sample", "--ckpt", copied, *flags).code == 0  # the same weights in another place
    shutil.rmtree(copied / "checkpoints" / "10")
    shutil.copytree(copied / "checkpoints" / "8", copied / "checkpoints" / "10")
    refused(
        "sample", "--ckpt", copied, *flags, says=["made otherwise", "weights_sha256 is", "--out"]
    )


def sampled(invoke, ckpt, out, *flags):
    assert invoke("sample", "--ckpt", ckpt, "--num_samples", 1, "--out", out, *flags).code == 0
    with np.load(next(out.glob("samples-*.npz"))) as shard:
        return shard["images"][0, ..., 0].astype(int)


@pytest.mark.full
@pytest.mark.parametrize(
    "flags",
    [
        ["--sampler", "ddim"],
        pytest.param(["--sampler", "heun", "--spacing", "karras"], marks=pytest.mark.slow),
    ],
    ids=["ddim", "heun"],
)
def test_the_ends_of_a_path_between_seeds_are_the_samples_of_these_seeds(
    invoke, trained, tmp_path, flags
):
    """To one grey level: the batch has another size, so the network's sums may be taken in another
    order."""
    flags = [*flags, "--steps", 5]
    path_flags = [
        "--interpolate_seeds",
        "1,7",
        "--interpolate_steps",
        3,
        "--out",
        tmp_path / "path",
    ]
    result = invoke("sample", "--ckpt", trained, *path_flags, *flags)
    assert result.code == 0, result.err
    (path,) = (tmp_path / "path").glob("interpolate_seeds_1_7_n3_step10_ema_seed0_steps5_*.png")
    assert str(path) in result.out
    assert (
        read_record(path).items()
        >= {"seeds": [1, 7], "lambdas": [0.0, 0.5, 1.0], "sampler": flags[1]}.items()
    )
    row = read_row(path)
    for place, seed in ((0, 1), (-1, 7)):
        sample = sampled(invoke, trained, tmp_path / str(seed), "--seed", seed, *flags)
        assert np.abs(row[place] - sample).max() <= 1
    assert np.abs(row[1] - row[0]).max() > 20
    assert np.abs(row[1] - row[2]).max() > 20


@pytest.mark.full
def test_the_samplers_own_noise_is_that_of_the_seed_all_along_the_path(invoke, trained, tmp_path):
    """The end at --seed is its ancestral sample; a path to it from elsewhere ends there under that
    --seed only."""
    flags = ["--ckpt", trained, "--steps", 5, "--interpolate_steps", 2, "--out", tmp_path / "path"]
    ends = []
    for seed in (1, 3):
        assert invoke("sample", *flags, "--interpolate_seeds", "7,1", "--seed", seed).code == 0
        ends.append(read_row(next((tmp_path / "path").glob(f"*_seed{seed}_steps5.png")))[-1])
    sample = sampled(invoke, trained, tmp_path / "plain", "--seed", 1, "--steps", 5)
    assert np.abs(ends[0] - sample).max() <= 1
    assert np.abs(ends[1] - sample).max() > 20


@pytest.mark.slow
def test_a_path_of_a_conditional_model_is_of_one_class_under_guidance(
    invoke, trained_by_class, tmp_path
):
    how = ["--sampler", "ddim", "--steps", 3, "--labels", 4, "--guidance_scale", 2]
    argv = ["--interpolate_seeds", "2,5", "--interpolate_steps", 4, "--out", tmp_path / "path"]
    assert invoke("sample", "--ckpt", trained_by_class, *argv, *how).code == 0
    row = read_row(next((tmp_path / "path").glob("*.png")))
    for place, seed in ((0, 2), (-1, 5)):
        sample = sampled(invoke, trained_by_class, tmp_path / str(seed), "--seed", seed, *how)
        assert np.abs(row[place] - sample).max() <= 1


@pytest.mark.slow
def test_a_reconstruction_is_nearer_with_more_steps_and_with_corrections(
    invoke, trained, picture, tmp_path
):
    """DDIM inversion is of first order, so four times the steps are about a quarter of the error:
    ask for half."""
    a, rmse = picture("a.png", 20), []
    for i, flags in enumerate(
        (["--steps", 4], ["--steps", 16], ["--steps", 4, "--corrections", 4])
    ):
        out = tmp_path / str(i)
        result = invoke("sample", "--ckpt", trained, "--reconstruct", a, *flags, "--out", out)
        assert result.code == 0, result.err
        (path,) = out.glob("reconstruct_a_*.png")
        assert str(path) in result.out
        record = read_record(path)
        rmse.append(record["rmse_grey_levels"])
        assert f"{rmse[-1]:.3g} grey levels" in result.out
        assert "--clip none" in result.out
        assert (
            record.items()
            >= {"clip": "none", "sampler": "ddim", "corrections": (0, 0, 4)[i]}.items()
        )
        photo, x_T, again = read_row(path)
        # The error of what is shown: rounded, which adds up to half a level, and cut to 0..255,
        # which takes from it.
        assert np.sqrt(np.mean(np.square(again - photo))) < rmse[-1] + 0.5
        # 20 levels of noise of 0.07 in all: x_T is near the photo here
        assert np.abs(x_T - photo).max() > 4
    assert rmse[1] < 0.5 * rmse[0]
    assert rmse[2] < 0.5 * rmse[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--interpolate_seeds", "1"], ["2 whole numbers in 0..4294967295"]),
        (["--interpolate_seeds", "1,2,3"], ["2 whole numbers in"]),
        (["--interpolate_seeds", "1,x"], ["2 whole numbers in"]),
        (["--interpolate_seeds", "1,1.5"], ["2 whole numbers in"]),
        (
            ["--interpolate_seeds", "1,4294967296"],
            ["interpolate_seeds is 1,4294967296", "0..4294967295"],
        ),
        (["--interpolate_seeds=-1,2"], ["interpolate_seeds is -1,2", "0..4294967295"]),
        (["--interpolate_seeds", "3,3"], ["all images are the same"]),
        (
            ["--interpolate_seeds", "1,2", "--init_image", "a.png"],
            ["edit no picture", "leave out --init_image"],
        ),
        (
            ["--interpolate_seeds", "1,2", "--inpaint", "a.png"],
            ["edit no picture", "leave out --inpaint"],
        ),
        (
            ["--interpolate_seeds", "1,2", "--reconstruct", "a.png"],
            ["--interpolate_seeds and --reconstruct", "give one"],
        ),
        (["--interpolate_seeds", "1,2", "--shared_latents"], ["a picture of their own"]),
        (
            ["--interpolate_seeds", "1,2", "--interpolate_t", 3],
            ["interpolate_t belongs to interpolate:"],
        ),
        (
            ["--interpolate_seeds", "1,2", "--num_samples", 3],
            ["--num_samples does nothing for --interpolate_seeds"],
        ),
        (["--interpolate_seeds", "1,2", "--chain"], ["--chain does nothing"]),
        (["--interpolate_seeds", "1,2", "--labels", "1,2"], ["of one class"]),
        (["--interpolate_t", 3], ["interpolate_t belongs to interpolate:"]),
        (["--interpolate_steps", 3], ["belongs to interpolate and interpolate_seeds"]),
        (["--corrections", 3], ["corrections belongs to reconstruct"]),
        (["--shared_latents", "--corrections", 3], ["corrections belongs to reconstruct"]),
        (["--shared_latents", "--chain"], ["--chain does nothing for --shared_latents"]),
        (["--reconstruct", "none.png"], ["reconstruct: there is no file none.png"]),
        (["--reconstruct", "a.png", "--sampler", "heun"], ["by DDIM", "leave out sampler heun"]),
        (
            ["--reconstruct", "a.png", "--clip", "static"],
            ["clips nothing", "leave out clip static"],
        ),
        (
            ["--reconstruct", "a.png", "--sampler_options", "eta=1"],
            ["--sampler_options does nothing"],
        ),
        (["--reconstruct", "a.png", "--seed", 1], ["--seed does nothing for --reconstruct"]),
        (
            ["--reconstruct", "a.png", "--corrections", -1],
            ["corrections is -1", "whole number in 0.."],
        ),
        (["--reconstruct", "a.png", "--init_image", "a.png"], ["edit no picture"]),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, trained, tmp_path, flags, says):
    refused("sample", "--ckpt", trained, "--out", tmp_path / "out", *flags, says=says)
    assert not (tmp_path / "out").exists()
