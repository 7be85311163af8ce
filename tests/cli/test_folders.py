"""A model of a folder of pictures, from training to pictures: its classes have names, its splits are told."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import command
from ddpm_jax.cli.load import load

from .conftest import main_of, write_config


def write_pictures(folder, *names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    return folder


CLASSES = ("ant", "bee", "cat")
NAMES = [f"{split}/{name}/{i}.png" for split in ("Train", "Test") for name in CLASSES for i in range(3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on three classes in a folder with splits."""
    directory = tmp_path_factory.mktemp("folders")
    photos = write_pictures(directory / "photos", *NAMES)
    config = write_config(directory / "mine.py", data_dir=str(photos), num_steps=2)
    fields = ["--config.data.name=folder", "--config.condition.num_classes=3", "--config.train.num_samples=6"]
    assert command.run(main_of("train"), ["--config", str(config), "--workdir", str(directory / "run"), *fields]) == 0
    return directory / "run"


def test_training_says_the_classes_and_the_splits_it_found(invoke, run):
    fields = ["--config.data.name=folder", "--config.condition.num_classes=3", "--config.train.num_samples=6"]
    result = invoke("train", "--config", run.parent / "mine.py", "--workdir", run, *fields)
    assert result.code == 0
    assert "data folder: train 9, test 9; 3 classes: ant 3, bee 3, cat 3\n" in result.err


def test_the_names_of_the_classes_are_kept_and_drawn(run):
    assert load(run).class_names == CLASSES
    assert json.loads((run / "config.json").read_text())["dataset"]["class_names"] == list(CLASSES)
    with Image.open(run / "samples" / "step_00000002.png") as grid:
        assert grid.height == 3 * 66 + 2
        assert grid.width > 2 * 66 + 2 + 10  # a label before every row


def test_labels_may_be_names_and_are_the_same_as_numbers(invoke, refused, run, tmp_path):
    made = []
    for labels in ("cat,ant", "2,0"):
        out = tmp_path / labels
        result = invoke("sample", "--ckpt", run, "--num_samples", 4, "--labels", labels, "--out", out)
        assert result.code == 0
        assert "image i is of class cat, ant in turn" in result.out
        made.append(np.load(out / "samples-00000-of-00001.npz")["images"])
    np.testing.assert_array_equal(*made)
    with Image.open(out / "grid.png") as grid:
        assert grid.height == 66 + 2 + 22  # a label over every column
    refused(
        "sample",
        "--ckpt",
        run,
        "--labels",
        "cats",
        says=["--labels cats", "no class 'cats'", "ant, bee, cat", "'cat'?"],
    )
    refused("sample", "--ckpt", run, "--labels", "3", says=["Label 3 is no class", "0 to 2"])


def test_a_run_from_before_names_were_kept_takes_numbers_and_says_so(invoke, refused, run, monkeypatch, tmp_path):
    from ddpm_jax.cli import load as loading

    monkeypatch.setattr(loading, "class_names_of", lambda settings: ())
    refused("sample", "--ckpt", run, "--labels", "cat", says=["names of this model's classes are not known", "3,5"])
    result = invoke("sample", "--ckpt", run, "--labels", "2", "--num_samples", 2, "--out", tmp_path / "out")
    assert result.code == 0
    assert "all of class 2" in result.out
