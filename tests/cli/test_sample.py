"""`python sample.py`: from a checkpoint alone to a grid, NPZ files and the chain; given again, it
goes on."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.generation import generating
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.monitoring.progress import Counter

ROOT = pathlib.Path(__file__).parents[2]
DIGIT = 64 + 2  # pixels a digit takes in a grid, with its margin


def read(out):
    shards = sorted(out.glob("samples-*.npz"))
    return np.concatenate([np.load(shard)["images"] for shard in shards])


@pytest.fixture(scope="module")
def eight(trained, tmp_path_factory):
    """Images 0..7, made in one batch from another working directory."""
    from ddpm_jax.cli import command, sample

    directory = tmp_path_factory.mktemp("elsewhere")
    before = os.getcwd()
    os.chdir(directory)
    try:
        argv = ["--ckpt", os.path.relpath(trained), "--num_samples", "8", "--out", "eight"]
        assert command.run(sample.main, argv) == 0
    finally:
        os.chdir(before)
    return directory / "eight"


def test_only_the_checkpoint_is_needed(eight):
    images = read(eight)
    assert images.shape == (8, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8  # eight different images
    with Image.open(eight / "grid.png") as grid:
        assert grid.size == (3 * DIGIT + 2, 3 * DIGIT + 2)


def test_the_manifest_says_how_to_make_the_images_again(eight):
    manifest = json.loads((eight / "manifest.json").read_text())
    wanted = {
        "checkpoint_step": 10,
        "weights": "ema",
        "sampler": "ancestral",
        "steps": 20,
        "seed": 0,
        "num_images": 8,
    }
    assert manifest.items() >= wanted.items()
    assert {"python", "ddpm-jax", "jax", "jaxlib", "flax", "numpy"} == set(manifest["versions"])


@pytest.mark.full
def test_batches_smaller_than_the_number_of_samples_give_the_same_images(
    invoke, trained, eight, tmp_path
):
    result = invoke(
        "sample",
        "--ckpt",
        trained,
        "--num_samples",
        8,
        "--batch_size",
        3,
        "--out",
        tmp_path / "out",
    )
    assert result.code == 0
    assert_same_images(read(tmp_path / "out"), read(eight))


def assert_same_images(actual, expected):
    """Equal but for one level in a few pixels: XLA sums in another order in programs of another
    size, and what lies on the border of two levels may fall to either side."""
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.full
def test_a_signal_keeps_the_batches_that_are_done_and_the_same_command_ends_with_the_same_images(
    invoke, trained, tmp_path, monkeypatch
):
    argv = ("sample", "--ckpt", trained, "--num_samples", 8, "--batch_size", 3)
    assert invoke(*argv, "--out", tmp_path / "whole").code == 0
    batches, made = [], []

    def within(counter, images, done, total):
        batches.extend([images] if done == total else [])
        if len(batches) == 2 and done == total:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Counter, "within", within)
        result = invoke(*argv, "--out", tmp_path / "stopped")
    assert result.code == 143
    assert result.err.splitlines()[-1] == (
        f"stopped by SIGTERM: 6 of 8 images are kept in {tmp_path / 'stopped'}; the same command "
        "goes on with the rest."
    )
    assert not list((tmp_path / "stopped").glob("samples-*"))
    monkeypatch.setattr(Counter, "within", lambda counter, images, done, total: made.append(images))
    assert invoke(*argv, "--out", tmp_path / "stopped").code == 0
    assert set(made) == {2}, "six of the eight were there"
    np.testing.assert_array_equal(read(tmp_path / "stopped"), read(tmp_path / "whole"))
    names = ({path.name for path in (tmp_path / out).iterdir()} for out in ("stopped", "whole"))
    assert next(names) == next(names)


@pytest.mark.full
def test_eight_devices_make_the_images_of_one(trained, eight, tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [
        sys.executable,
        ROOT / "sample.py",
        "--ckpt",
        trained,
        "--num_samples",
        "8",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # of a slow machine
    said = [line for line in done.stderr.splitlines() if not line.startswith("sampling: ")]
    assert said == []  # no library has anything to say either
    assert_same_images(read(tmp_path / "out"), read(eight))


def test_given_again_nothing_is_made_anew(invoke, trained, eight, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in eight.glob("samples-*.npz")}
    monkeypatch.setattr(
        generating, "generate_batches", lambda *args, **kwargs: pytest.fail("sampled again")
    )
    assert invoke("sample", "--ckpt", trained, "--num_samples", 8, "--out", eight).code == 0
    assert {path.name: path.stat().st_mtime_ns for path in eight.glob("samples-*.npz")} == before


@pytest.mark.full
def test_results_of_other_settings_are_never_mixed(refused, trained, eight):
    before = (eight / "manifest.json").read_bytes()
    argv = ["--ckpt", trained, "--num_samples", 8, "--out", eight, "--seed", 1]
    refused("sample", *argv, says=["seed is 0 there, 1 here", "another directory"])
    assert (eight / "manifest.json").read_bytes() == before


def shards(out):
    return {path.name: path.read_bytes() for path in out.glob("samples-*.npz")}


@pytest.mark.slow
def test_images_of_other_weights_at_the_same_step_are_never_returned(
    invoke, refused, copied, tmp_path
):
    argv = ["--num_samples", 2, "--steps", 2, "--out", tmp_path / "out"]
    assert invoke("sample", "--ckpt", copied, *argv).code == 0
    moved = copied.rename(tmp_path / "moved")
    assert invoke("sample", "--ckpt", moved, *argv).code == 0  # the same weights, wherever they lie
    before = shards(tmp_path / "out")
    shutil.rmtree(moved / "checkpoints" / "10")
    shutil.copytree(moved / "checkpoints" / "8", moved / "checkpoints" / "10")
    says = ["made otherwise (weights_sha256 is ", "... there, ", "name another directory"]
    refused("sample", "--ckpt", moved, *argv, says=says)
    assert shards(tmp_path / "out") == before


def test_images_of_an_older_version_are_read_and_not_added_to(
    invoke, refused, trained, eight, tmp_path
):
    out = pathlib.Path(shutil.copytree(eight, tmp_path / "out"))
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("weights_sha256", "config", "random_numbers", "checkpoint"):
        del manifest[name]
    (out / "manifest.json").write_text(json.dumps(manifest))
    says = [
        "of an older version",
        "weights_sha256 and config and random_numbers",
        "name another directory",
    ]
    refused("sample", "--ckpt", trained, "--num_samples", 8, "--out", out, says=says)
    np.testing.assert_array_equal(read_shards(out), read(eight))


def test_a_shard_of_other_images_is_not_drawn(refused, trained, eight, tmp_path):
    out = pathlib.Path(shutil.copytree(eight, tmp_path / "out"))
    np.savez(out / "samples-00000-of-00001.npz", images=read(eight), index=np.arange(8, 16))
    says = ["samples-00000-of-00001.npz holds other images than its name says"]
    refused("sample", "--ckpt", trained, "--num_samples", 8, "--out", out, says=says, code=1)


@pytest.mark.full
def test_raw_weights_fewer_steps_and_an_older_checkpoint_give_other_images_in_folders_of_their_own(
    invoke, copied, eight
):
    flags = ["--raw_weights", "--steps", 5, "--ckpt_step", 8, "--seed", 3]
    result = invoke("sample", "--ckpt", copied, "--num_samples", 8, *flags)
    assert result.code == 0
    out = copied / "generated" / "step8_raw_seed3_steps5_n8"
    assert f"{out}/grid.png" in result.out
    manifest = json.loads((out / "manifest.json").read_text())
    wanted = {"checkpoint_step": 8, "weights": "raw", "steps": 5, "seed": 3}
    assert manifest.items() >= wanted.items()
    assert (read(out) != read(eight)).mean() > 0.5


@pytest.mark.full
def test_raw_weights_are_not_the_moving_average(invoke, trained, eight, tmp_path):
    argv = ["--ckpt", trained, "--num_samples", 8, "--out", tmp_path / "raw", "--raw_weights"]
    assert invoke("sample", *argv).code == 0
    difference = np.abs(read(tmp_path / "raw").astype(int) - read(eight))
    assert 0 < difference.mean() < 30  # the same noise through nearly the same network


@pytest.mark.full
def test_the_chain_is_drawn_as_a_strip_and_an_animation(invoke, trained, eight):
    result = invoke("sample", "--ckpt", trained, "--num_samples", 8, "--out", eight, "--chain")
    assert result.code == 0
    assert f"{eight}/chain.gif" in result.out
    with Image.open(eight / "chain.gif") as animation:
        assert animation.n_frames == 21  # noise and each of 20 steps
        names = animation.size[0] - (8 * DIGIT + 2)  # x_t and x_0, before the rows
        assert 10 < names < 40
        assert animation.size[1] == 2 * DIGIT + 2
    with Image.open(eight / "chain.png") as picture:
        strip = np.asarray(picture)
    # 12 moments; two rows for each of 8 digits, and 7 gaps of 8 pixels.
    assert strip.shape == (22 + 8 * 2 * DIGIT + 2 + 7 * 8, names + 12 * DIGIT + 2)
    last = strip[24 : 24 + 64, -DIGIT:-2][::8, ::8]  # of x_t: the sample itself
    assert np.abs(last.astype(int) - read(eight)[0, :, :, 0]).max() <= 1
