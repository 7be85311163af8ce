"""A model of a folder of pictures, from training to pictures: its classes have names, its splits
are told."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import command
from ddpm_jax.experiments.loading import load_trained

from .conftest import find_main, write_config


def write_pictures(folder, *names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    return folder


CLASSES = ("ant", "bee", "cat")
NAMES = [
    f"{split}/{name}/{i}.png" for split in ("Train", "Test") for name in CLASSES for i in range(3)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on three classes in a folder with splits."""
    directory = tmp_path_factory.mktemp("folders")
    photos = write_pictures(directory / "photos", *NAMES)
    config = write_config(directory / "mine.py", data_dir=str(photos), num_steps=2)
    fields = [
        "--config.data.name=folder",
        "--config.condition.num_classes=3",
        "--config.train.num_samples=6",
    ]
    assert (
        command.run(
            find_main("train"),
            ["--config", str(config), "--workdir", str(directory / "run"), *fields],
        )
        == 0
    )
    return directory / "run"


@pytest.mark.full
def test_training_says_the_classes_and_the_splits_it_found(invoke, run):
    fields = [
        "--config.data.name=folder",
        "--config.condition.num_classes=3",
        "--config.train.num_samples=6",
    ]
    result = invoke("train", "--config", run.parent / "mine.py", "--workdir", run, *fields)
    assert result.code == 0
    assert "data folder: train 9, test 9; 3 classes: ant 3, bee 3, cat 3\n" in result.err


@pytest.mark.full
def test_the_names_of_the_classes_are_kept_and_drawn(run):
    assert load_trained(run).class_names == CLASSES
    assert json.loads((run / "config.json").read_text())["dataset"]["class_names"] == list(CLASSES)
    with Image.open(run / "samples" / "step_00000002.png") as grid:
        assert grid.height == 3 * 66 + 2
        assert grid.width > 2 * 66 + 2 + 10  # a label before every row


@pytest.mark.slow
def test_labels_may_be_names_and_are_the_same_as_numbers(invoke, refused, run, tmp_path):
    made = []
    for labels in ("cat,ant", "2,0"):
        out = tmp_path / labels
        result = invoke(
            "sample", "--ckpt", run, "--num_samples", 4, "--labels", labels, "--out", out
        )
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
        says=["labels cats", "no class 'cats'", "ant, bee, cat", "'cat'?"],
    )
    refused("sample", "--ckpt", run, "--labels", "3", says=["Label 3 is no class", "0 to 2"])


@pytest.mark.full
def test_a_run_from_before_names_were_kept_takes_numbers_and_says_so(
    invoke, refused, run, monkeypatch, tmp_path
):
    from ddpm_jax.experiments import loading as loading

    monkeypatch.setattr(loading, "class_names_in", lambda settings: ())
    refused(
        "sample",
        "--ckpt",
        run,
        "--labels",
        "cat",
        says=["names of this model's classes are not known", "3,5"],
    )
    result = invoke(
        "sample", "--ckpt", run, "--labels", "2", "--num_samples", 2, "--out", tmp_path / "out"
    )
    assert result.code == 0
    assert "all of class 2" in result.out


@pytest.fixture(scope="module")
def without_held_out(tmp_path_factory):
    """A run of two steps on six loose images, none of them held out, and what it said."""
    directory = tmp_path_factory.mktemp("loose")
    photos = write_pictures(directory / "photos", *(f"{i}.png" for i in range(6)))
    config = write_config(directory / "mine.py", data_dir=str(photos), num_steps=2)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        argv = [
            "--config",
            str(config),
            "--workdir",
            str(directory / "run"),
            "--config.data.name=folder",
        ]
        assert command.run(find_main("train"), argv) == 0
    return directory / "run", said.getvalue()


@pytest.mark.full
def test_training_warns_that_nothing_is_held_out(without_held_out):
    warning = "warning: no image is held out, so nothing can be compared with images that were not trained on: set data"
    assert warning in without_held_out[1]


@pytest.mark.full
def test_without_held_out_images_the_training_images_are_evaluated_where_asked_for(
    invoke, refused, without_held_out, monkeypatch
):
    run, _ = without_held_out
    flags = ["--ckpt", run, "--num_samples", 3, "--steps", 2]
    says = ["photos has no test split of its own", "--split train", "--data_dir"]
    refused("evaluate", *flags, says=says)
    refused("evaluate", *flags, "--metric", "bpd", says=says)
    result = invoke("evaluate", *flags, "--metric", "frechet_pixels,bpd", "--split", "train")
    assert result.code == 0, result.err
    assert "warning" not in result.err
    found = json.loads(
        next((run / "evaluation").glob("frechet_pixels_*_train_n3_*.json")).read_text()
    )
    assert found["frechet_samples"] > 0
    assert found["num_train"] == 6
    assert not {"frechet_held_out", "ratio", "num_held_out"} & set(found)
    found = json.loads(next((run / "evaluation").glob("bpd_*_train_n6*.json")).read_text())
    assert found["split"] == "train"


@pytest.mark.full
@pytest.mark.parametrize("metric", ["frechet_pixels", pytest.param("bpd", marks=pytest.mark.slow)])
def test_other_data_than_those_of_the_run_are_told_by_every_metric(
    invoke, refused, run, tmp_path, metric
):
    flags = [
        "--ckpt",
        run,
        "--num_samples",
        3,
        "--steps",
        2,
        "--metric",
        metric,
        "--out",
        tmp_path / "same",
    ]
    moved = write_pictures(tmp_path / "moved", *NAMES)
    result = invoke("evaluate", *flags, "--data_dir", moved)
    assert result.code == 0
    assert "warning" not in result.err
    assert "trained_on" not in json.loads(next((tmp_path / "same").glob("*.json")).read_text())
    flags[-1] = tmp_path / "other"
    write_pictures(moved, "Test/bee/new.png")
    result = invoke("evaluate", *flags, "--data_dir", moved)
    assert result.code == 0
    assert "warning: the model was trained on other data (folder n=18 files=" in result.err
    assert "evaluated on (folder n=19 files=" in result.err
    assert json.loads(next((tmp_path / "other").glob("*.json")).read_text())[
        "trained_on"
    ].startswith("folder n=18 ")
    (moved / "Train" / "bee").rename(moved / "Train" / "wasp")
    (moved / "Test" / "bee").rename(moved / "Test" / "wasp")
    says = ["has the classes ant, cat, wasp", "was trained with ant, bee, cat", "the same classes"]
    refused("evaluate", *flags, "--data_dir", moved, says=says)


@pytest.mark.full
def test_a_run_that_would_write_into_its_images_is_refused_at_the_start(refused, run, tmp_path):
    photos = run.parent / "photos"
    before = sorted(map(str, photos.rglob("*")))
    train = [
        "--config",
        run.parent / "mine.py",
        "--config.data.name=folder",
        "--config.condition.num_classes=3",
    ]
    refused(
        "train",
        *train,
        "--workdir",
        photos / "run",
        says=["--workdir", "lies in the folder of images"],
    )
    cache = ["--compilation_cache", photos / "cache"]
    refused(
        "train",
        *train,
        "--workdir",
        tmp_path / "run",
        *cache,
        says=["--compilation_cache", "folder of images"],
    )
    for name in ("sample", "evaluate"):
        refused(
            name,
            "--ckpt",
            run,
            "--out",
            photos / "Test" / "x",
            says=["--out", "lies in the folder of images"],
        )
    assert sorted(map(str, photos.rglob("*"))) == before


@pytest.mark.slow
def test_a_folder_that_has_changed_is_told_at_resume_by_its_files(
    invoke, refused, without_held_out
):
    run, _ = without_held_out
    photos = run.parent / "photos"
    more = ["--config", run.parent / "mine.py", "--config.data.name=folder", "--workdir", run]
    more += ["--config.train.num_steps=3"]
    write_pictures(photos, "new.png")
    refused(
        "train",
        *more,
        says=["not those that the run began with", "1 is new (new.png)", "another workdir"],
    )
    (photos / "new.png").unlink()
    old = (photos / "4.png").read_bytes()
    Image.new("L", (8, 8)).save(photos / "4.png")
    refused("train", *more, says=["Image 4.png has", "bytes, but had", "data_files.jsonl.gz"])
    (photos / "4.png").write_bytes(old)
    (run / "data_files.jsonl.gz").unlink()  # as of a run from before there were listings
    result = invoke("train", *more)
    assert result.code == 0, result.err
    assert (run / "data_files.jsonl.gz").exists()
    result = invoke("train", *more)
    assert result.code == 0, result.err
    assert "another time" not in result.err


@pytest.mark.slow
def test_samplers_are_compared_without_held_out_images_too(invoke, without_held_out, tmp_path):
    argv = [
        "--ckpt",
        without_held_out[0],
        "--num_samples",
        3,
        "--evaluations",
        "2",
        "--samplers",
        "ddim",
    ]
    assert invoke("samplers", *argv, "--out", tmp_path).code == 0
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert set(record["floors"]) == {"mixture_energy"}
    assert record["rows"][0]["frechet"] > 0
