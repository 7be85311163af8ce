"""Directories, data and devices that are not what a command was told: one sentence, and nothing is
changed."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import host_memory
from ddpm_jax.cli import command
from ddpm_jax.generation import generating
from ddpm_jax.training_runs import start

from ..conftest import GOLDENS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def pictures(tmp_path):
    """pictures(size, n) -> a folder of grey PNG files."""

    def write(size, count=8):
        folder = tmp_path / f"pictures{size}"
        folder.mkdir()
        for i in range(count):
            Image.fromarray(np.full((size, size), 20 * i, np.uint8)).save(folder / f"{i}.png")
        return folder

    return write


@pytest.fixture
def refused_training(refused, config_file, tmp_path, monkeypatch):
    """refused_training(*argv, says=...): train.py refuses before it draws parameters or makes the
    workdir."""
    monkeypatch.setattr(start, "init_state", lambda *args: pytest.fail("parameters were drawn"))

    def check(*argv, says, workdir=tmp_path / "run", left=()):
        refused("train", "--config", config_file(), "--workdir", workdir, *argv, says=says)
        assert sorted(os.listdir(workdir) if workdir.is_dir() else []) == sorted(left)

    return check


@pytest.fixture
def refused_sampling(refused, tmp_path, monkeypatch):
    """refused_sampling(*argv, says=...): sample.py and evaluate.py refuse before they sample."""
    monkeypatch.setattr(
        generating, "make_generate", lambda *args, **kwargs: pytest.fail("sampling was set up")
    )

    def check(*argv, says):
        for name in ("sample", "evaluate"):
            refused(name, *argv, says=says)

    return check


def folder_flags(folder, *more):
    return ["--config.data.name=folder", f"--config.data.data_dir={folder}", *more]


def test_a_workdir_that_cannot_be_made_is_refused(refused_training, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused_training(workdir=file, says=[f"{file} is a file", "name a directory"])
    refused_training(
        workdir=file / "run", says=["cannot be made", f"{file} is a file", "another directory"]
    )
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission_is_refused(refused_training, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused_training(
        workdir=tmp_path / "locked" / "run", says=["may not write", "another directory"]
    )


def test_a_missing_folder_of_images_is_refused(refused_training, tmp_path):
    refused_training(*folder_flags(tmp_path / "none"), says=["none' does not exist", "data_dir"])
    (tmp_path / "empty").mkdir()
    refused_training(*folder_flags(tmp_path / "empty"), says=["empty holds no images"])


def test_images_smaller_than_asked_for_are_refused(refused_training, pictures):
    says = [
        "0.png is 4x4",
        "image_size=8",
        "7 more",
        "smaller image_size",
        "all 8 are listed in",
        "bad_images.txt",
    ]
    refused_training(*folder_flags(pictures(4)), says=says, left=["bad_images.txt"])


def test_an_unreadable_image_stops_the_run_and_names_the_file_and_the_way_out(
    refused_training, pictures
):
    folder = pictures(16)
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:50])
    refused_training(*folder_flags(folder), says=["3.png cannot be read", "skip"])
    (folder / "3.png").write_text("no picture at all")
    refused_training(*folder_flags(folder), says=["3.png cannot be read", "skip"])


@pytest.mark.full
def test_with_skip_the_rest_is_trained_on_and_the_skipped_file_is_named(
    invoke, config_file, pictures, tmp_path, caplog
):
    folder = pictures(16, count=9)
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:50])
    flags = folder_flags(folder, "--config.data.unreadable=skip", "--config.train.num_steps=2")
    result = invoke("train", "--config", config_file(), "--workdir", tmp_path / "run", *flags)
    assert result.code == 0
    assert "starting the first of 2 steps; " in result.err
    assert any("3.png" in record.getMessage() for record in caplog.records)


def test_a_dataset_that_is_not_prepared_is_refused_with_the_command_that_prepares_it(
    refused_training, tmp_path
):
    flags = ["--config.data.name=cifar10", f"--config.data.data_dir={tmp_path}"]
    refused_training(
        *flags,
        says=["'cifar10' is not prepared", str(tmp_path), "download_and_prepare", "[prepare]"],
    )


def test_a_checkpoint_that_is_none_is_refused(refused_sampling, tmp_path):
    refused_sampling("--ckpt", tmp_path / "none", says=["no directory", "none", "--workdir"])
    (tmp_path / "empty").mkdir()
    refused_sampling("--ckpt", tmp_path / "empty", says=["empty holds no checkpoint", "train.py"])
    (tmp_path / "file").write_text("x")
    refused_sampling("--ckpt", tmp_path / "file", says=["file is of no format that is read here"])
    (tmp_path / "foreign" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "foreign" / "checkpoints" / "5" / "model.bin").write_text("x")
    refused_sampling("--ckpt", tmp_path / "foreign", says=["not written by ddpm_jax"])


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "clip_text_model"),
    ],
)
def test_one_part_of_a_model_is_refused_with_what_it_is(refused_sampling, part, kind):
    part = GOLDENS / "sd/sd1" / part
    refused_sampling("--ckpt", part, says=[f"{part} is one part of a model, {kind}: give the"])


def test_a_step_without_a_checkpoint_is_refused_naming_those_there_are(refused_sampling, trained):
    refused_sampling("--ckpt", trained, "--ckpt_step", 7, says=["step 7", "choose one of 8, 10"])


def _flip_a_bit(step_folder):
    """In the largest file, which holds the numbers."""
    file = max(
        (path for path in step_folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_damaged_checkpoint_is_refused_naming_the_newest_whole_one(refused, name, copied):
    _flip_a_bit(copied / "checkpoints" / "10")
    says = [
        "checkpoints/10 is damaged (its file state/",
        "is not what was written)",
        "of step 8",
        "--ckpt_step 8",
    ]
    refused(name, "--ckpt", copied, says=says, code=1)
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"8", "10"}


@pytest.mark.full
def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before_it_and_says_so(
    invoke, copied, config_file
):
    _flip_a_bit(copied / "checkpoints" / "10")
    result = invoke("train", "--config", config_file(num_steps=12), "--workdir", copied)
    assert result.code == 0
    warnings = [
        line for line in result.err.splitlines() if line.startswith("warning: the checkpoint")
    ]
    assert len(warnings) == 1
    assert "the checkpoint of step 10 in " in warnings[0]
    assert warnings[0].endswith(
        "it is kept as 10.damaged, and the run resumes from the one of step 8."
    )
    assert "resuming at step 8 of 12" in result.err
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"8", "10.damaged", "12"}


@pytest.mark.full
def test_a_picture_that_cannot_be_written_is_told_and_the_last_step_is_saved(
    invoke, copied, config_file
):
    picture = copied / "samples" / "step_00000012.png"
    picture.mkdir(parents=True)  # stands in its way
    result = invoke("train", "--config", config_file(num_steps=12), "--workdir", copied)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        f"error: Cannot write {picture}: Is a directory. "
    )
    assert (copied / "checkpoints" / "12").is_dir()


@pytest.mark.slow
def test_a_number_that_overflows_is_followed_to_its_module(invoke, config_file, tmp_path):
    # After one step at this rate the parameters are so large that products of them overflow.
    flags = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_steps=0"]
    result = invoke("train", "--config", config_file(), "--workdir", tmp_path / "run", *flags)
    assert result.code == 1
    assert re.fullmatch(
        r"error: loss became nan at step 2: the first number that is not finite is in the output of \w+ \(its input is "
        r"finite, up to \d.*\), for 8 of 8 images, one of them at t = \d+\. No checkpoint had been saved yet; lower "
        r"optimizer\.learning_rate, .* with train\.skip_nonfinite=1\.",
        result.err.splitlines()[-1],
    )


def test_more_steps_than_timesteps_are_refused(refused_sampling, trained):
    refused_sampling(
        "--ckpt", trained, "--steps", 21, says=["steps is 21", "20 timesteps", "1 to 20"]
    )


def test_an_output_that_is_a_file_is_refused(refused, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(
        "sample",
        "--ckpt",
        trained,
        "--out",
        tmp_path / "file",
        says=["is a file", "name a directory"],
    )
    refused(
        "sample", "--ckpt", trained, "--out", tmp_path / "file" / "x", says=["Cannot write"], code=1
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_a_gpu_asked_for_and_absent_is_refused(refused, name, trained, config_file, tmp_path):
    argv = (
        ["--config", config_file(), "--workdir", tmp_path / "run"]
        if name == "train"
        else ["--ckpt", trained]
    )
    says = ["--platform gpu", "no such device", "--platform cpu", "pip install -e '.[cuda]'"]
    refused(name, *argv, "--platform", "gpu", says=says)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("variable", "flags", "named"),
    [("cuda", [], "JAX_PLATFORMS=cuda"), ("", ["--platform", "gpu"], "--platform gpu")],
)
def test_a_gpu_asked_for_and_absent_is_refused_in_a_fresh_process(trained, variable, flags, named):
    environment = os.environ | {"JAX_PLATFORMS": variable, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "sample.py", "--ckpt", trained, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {named} was asked for")
    assert done.stderr.count("\n") == 1


def test_a_defect_of_the_package_keeps_its_traceback():
    from ddpm_jax.cli import command

    def broken(argv):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        command.run(broken, [])


def test_ctrl_c_before_training_is_one_line(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert command.run(main, []) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_damaged_config_in_the_workdir_is_named(refused, config_file, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    refused(
        "train",
        "--config",
        config_file(),
        "--workdir",
        tmp_path,
        code=1,
        says=["config.json is damaged"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        (
            "train",
            ["--config.train.batch_size=2048"],
            [
                "a training step of 2048 images asked for",
                "optimizer.accumulate_steps=2",
                "model.remat=blocks",
            ],
        ),
        (
            "sample",
            ["--num_samples=2048", "--batch_size=2048"],
            ["making 2048 images at a time", "lower --batch_size"],
        ),
        pytest.param(
            "evaluate",
            ["--metric=bpd", "--batch_size=300", "--timestep_stride=10"],
            ["bpd of 300 images at a time asked for", "lower --batch_size"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_program_larger_than_the_memory_there_is_ends_in_a_sentence(
    invoke, trained, config_file, tmp_path, monkeypatch, name, argv, says
):
    """Of the programs as they are compiled, on a machine that has 8 MiB for them."""
    monkeypatch.setattr(host_memory, "total", lambda: 2**23)
    place = (
        ["--config", config_file(), "--workdir"]
        if name == "train"
        else ["--ckpt", trained, "--out"]
    )
    result = invoke(name, *place, tmp_path / "out", *argv)
    assert result.code == 1, result
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("error: Out of memory: ")
    for words in (*says, "this process can have 8.0 MiB"):
        assert words in last


def test_a_checkpoint_that_memory_does_not_suffice_for_is_not_taken_for_a_damaged_one(
    invoke, copied, config_file, monkeypatch
):
    def restore(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", restore)
    result = invoke("train", "--config", config_file(num_steps=12), "--workdir", copied)
    assert result.code == 1
    assert result.err.endswith("or use a device with more memory.\n")
    assert "Out of memory: this command asked for 4.0 KiB" in result.err
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"8", "10"}
