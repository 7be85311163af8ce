"""`python train.py`: what a run leaves behind, and how it is resumed."""

import json
import shutil
import sys
from unittest import mock

import pytest
from PIL import Image

from ddpm_jax import locks
from ddpm_jax.monitoring.records import read
from ddpm_jax.training_runs import start


def steps_in(workdir):
    return [record["step"] for record in read(workdir)]


def checkpoints_in(workdir):
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )


@pytest.mark.full
def test_a_run_leaves_its_records_checkpoints_pictures_and_config(train_with):
    trained = train_with()
    assert steps_in(trained) == [2, 4, 6, 8, 10]
    assert checkpoints_in(trained) == [8, 10]
    assert list((trained / "tensorboard").iterdir())
    with (
        Image.open(trained / "samples" / "step_00000010.png") as grid,
        Image.open(trained / "loss.png") as curve,
    ):
        assert grid.size == (2 * 64 + 3 * 2,) * 2  # 2x2 digits of 64 pixels
        assert curve.size[0] > 100
    saved = json.loads((trained / "config.json").read_text())
    assert saved["model"]["ch"] == 32
    assert saved["optimizer"]["b1"] == 0.9  # a default that the file did not name


@pytest.mark.full
def test_the_same_command_with_more_steps_resumes(invoke, copied, config_file):
    result = invoke(
        "train", "--config", config_file(), "--workdir", copied, "--config.train.num_steps=12"
    )
    assert result.code == 0
    assert "resuming at step 10 of 12" in result.err
    assert steps_in(copied) == [2, 4, 6, 8, 10, 12]
    assert checkpoints_in(copied) == [10, 12]
    assert f"next: python sample.py --ckpt {copied}" in result.out
    assert json.loads((copied / "config.json").read_text())["train"]["num_steps"] == 12


@pytest.mark.full
def test_a_chain_that_ends_too_early_is_said_before_training(invoke, copied, config_file):
    result = invoke("train", "--config", config_file(), "--workdir", copied)  # linear, 20 steps
    assert result.err.startswith("warning: the chain of 20 steps ends at alphas_bar_T = 0.82, ")
    assert "L_T is 1.2 bits/dim" in result.err
    assert "scale_betas" in result.err


@pytest.mark.full
def test_a_finished_run_given_again_only_draws_a_grid_that_is_not_there(
    invoke, copied, config_file
):
    before = (copied / "metrics.jsonl").read_bytes()
    grid = copied / "samples" / "step_00000010.png"
    grid.parent.mkdir(exist_ok=True)
    grid.write_bytes(b"a grid")
    argv = ["train", "--config", config_file(), "--workdir", copied]
    assert invoke(*argv).code == 0
    assert grid.read_bytes() == b"a grid"
    grid.unlink()
    assert invoke(*argv).code == 0
    with Image.open(grid) as picture:
        assert picture.size == (2 * 64 + 3 * 2,) * 2
    assert (copied / "metrics.jsonl").read_bytes() == before
    assert checkpoints_in(copied) == [8, 10]


def test_a_workdir_of_another_config_is_refused_naming_the_fields(refused, trained, config_file):
    before = (trained / "config.json").read_bytes()
    overrides = [
        "--config.model.ch=64",
        "--config.optimizer.learning_rate=0.1",
        "--config.train.num_steps=99",
    ]
    says = [
        "model.ch (32 there, 64 here)",
        "optimizer.learning_rate (0.0002 there, 0.1 here)",
        "another workdir",
    ]
    refused("train", "--config", config_file(), "--workdir", trained, *overrides, says=says)
    assert (trained / "config.json").read_bytes() == before


@pytest.mark.full
def test_more_steps_are_refused_once_the_learning_rate_has_fallen_over_the_first(
    refused, copied, config_file
):
    path = copied / "config.json"
    path.write_text(path.read_text().replace('"decay": "constant"', '"decay": "cosine"'))
    before = path.read_bytes()
    overrides = ["--config.optimizer.decay=cosine", "--config.train.num_steps=26"]
    # step 10 is 8 steps after the warm-up: the end of the 8 before, a third of the 24 now; 2e-4 (1
    # + cos(pi / 3)) / 2
    says = [
        "train.num_steps is 26",
        "optimizer.decay=cosine",
        "at step 10 it would be 0.00015 instead of 0,",
    ]
    refused("train", "--config", config_file(), "--workdir", copied, *overrides, says=says)
    assert path.read_bytes() == before


@pytest.mark.full
def test_a_run_that_was_killed_before_it_had_anything_to_show_is_replaced_by_another_config(
    invoke, refused, copied, config_file
):
    """As a kill while compiling leaves it; what has records is kept, checkpoint or not."""
    shutil.rmtree(copied / "checkpoints")
    argv = [
        "--config",
        config_file(),
        "--workdir",
        copied,
        "--config.seed=1",
        "--config.train.num_steps=2",
    ]
    refused(
        "train",
        *argv,
        says=["another config: seed (0 there, 1 here)", "remove it (it has records, but no"],
    )
    assert len(steps_in(copied)) == 5
    (copied / "metrics.jsonl").unlink()
    assert invoke("train", *argv).code == 0
    assert json.loads((copied / "config.json").read_text())["seed"] == 1
    assert checkpoints_in(copied) == [2]


def test_a_run_that_is_further_than_it_is_to_go_is_said_so(refused, copied, config_file):
    before = (copied / "config.json").read_bytes()
    says = ["train.num_steps is 9, but the run in", "is at step 10 already", "--ckpt_step"]
    refused(
        "train",
        "--config",
        config_file(),
        "--workdir",
        copied,
        "--config.train.num_steps=9",
        says=says,
    )
    assert (copied / "config.json").read_bytes() == before
    assert steps_in(copied) == [2, 4, 6, 8, 10]


def test_a_second_training_in_the_same_directory_ends_before_it_does_anything(
    refused, copied, config_file, monkeypatch
):
    monkeypatch.setattr(start, "build", lambda *args: pytest.fail("it went on"))
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    argv = ["--config", config_file(), "--workdir", copied, "--config.train.num_steps=12"]
    with locks.hold(copied, "training in it"):
        # Of another config too: what is in the directory is the other's to say.
        for more in ([], ["--config.seed=1"]):
            refused(
                "train",
                *argv,
                *more,
                code=1,
                says=["is in use: process", "has been training in it since"],
            )
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.full
@pytest.mark.parametrize(("given", "name"), [([], "runs/mine"), (["--workdir", "here"], "here")])
def test_the_workdir_is_named_by_the_config_file_unless_given(
    invoke, copied, config_file, tmp_path, monkeypatch, given, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    copied.rename(tmp_path / name)
    assert f"{name}: resuming" in invoke("train", "--config", config_file(), *given).err


def test_wandb_is_refused_before_anything_is_done_where_it_is_not_installed(
    refused, config_file, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    workdir = tmp_path / "new"
    says = ["pip install -e '.[wandb]'"]
    refused(
        "train", "--config", config_file(), "--workdir", workdir, "--wandb", "digits", says=says
    )
    assert not workdir.exists()


@pytest.mark.full
def test_wandb_sees_the_records_the_bars_the_grid_and_the_config(
    invoke, copied, config_file, monkeypatch
):
    run, package = mock.Mock(), mock.Mock()
    package.init.return_value = run
    monkeypatch.setitem(sys.modules, "wandb", package)
    arguments = ["--workdir", copied, "--wandb", "digits", "--config.train.num_steps=11"]
    assert invoke("train", "--config", config_file(), *arguments).code == 0
    logged = {
        name: call.args[0]["step"] for call in run.log.call_args_list for name in call.args[0]
    }
    assert {"loss", "loss_by_t", "samples", "colour_shift"} <= logged.keys()
    assert set(logged.values()) == {11}
    assert package.init.call_args.kwargs["config"]["model"]["ch"] == 32
    run.finish.assert_called_once()
