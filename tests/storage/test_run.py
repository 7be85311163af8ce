"""A run whose directory lies in a bucket: the same numbers as on a disk, killed and resumed,
damaged and noticed."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.monitoring.records import read

pytestmark = pytest.mark.slow

# of a record, what does not depend on the clock
NUMBERS = ("step", "loss", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def on_disk(call, config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk") / "run"
    assert call("train", "--config", config_file, "--workdir", workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def in_bucket(call, config_file, folder):
    """Stopped at step 4, whose checkpoint was not finished, and resumed from step 2 to step 6."""
    workdir = folder / "run"
    train = ["--config", config_file, "--workdir", workdir]
    assert call("train", *train, "--config.train.num_steps=4") == 0
    assert saved_steps(workdir) == [2, 4]
    # What Orbax writes last, where nothing can be renamed: a kill before that leaves all else.
    (workdir / "checkpoints" / "4" / "commit_success.txt").unlink()
    assert saved_steps(workdir) == [2]
    assert call("train", *train) == 0
    return workdir


def _numbers(workdir):
    return [{name: record[name] for name in NUMBERS} for record in read(workdir)]


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_killed_while_saving_goes_on_to_the_same_bits_as_on_a_disk(on_disk, in_bucket):
    assert saved_steps(in_bucket) == saved_steps(on_disk) == [2, 4, 6]
    for raw in (False, True):
        there, here = (
            load_trained(workdir, raw_weights=raw).params for workdir in (in_bucket, on_disk)
        )
        jax.tree.map(np.testing.assert_array_equal, there, here)
    assert _numbers(in_bucket) == _numbers(on_disk), "none lost, none twice"
    assert [record["step"] for record in read(in_bucket)] == list(range(1, 7))


def test_everything_of_the_run_is_there_and_no_object_was_written_again_to_append_to_it(
    on_disk, in_bucket
):
    assert {"config.json", "loss.png", "samples", "checkpoints"} <= set(_names(in_bucket))
    for picture in ("loss.png", "samples/step_00000006.png"):
        assert (in_bucket / picture).read_bytes().startswith(b"\x89PNG")
    assert (in_bucket / "config.json").read_bytes() == (on_disk / "config.json").read_bytes()
    parts = [
        (in_bucket / "metrics" / name).read_text().splitlines()
        for name in _names(in_bucket / "metrics")
    ]
    steps = [[json.loads(line)["step"] for line in part] for part in parts]
    # At each save two steps, at the end the last grid; on resuming from step 2 what is later was
    # cut out.
    assert steps == [[1, 2], [], [], [3, 4], [5, 6], [6]]


def test_tensorboard_reads_every_step_once(in_bucket):
    from tensorboardX.proto import event_pb2

    seen = []
    for name in _names(in_bucket / "tensorboard"):
        data, start = (in_bucket / "tensorboard" / name).read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 12 + length + 4
            if event.HasField("session_log"):
                seen = [step for step in seen if step < event.step]
            seen += [event.step for value in event.summary.value if value.tag == "loss"]
    assert seen == list(range(1, 7))


def test_samples_and_a_bound_are_those_of_the_run_on_the_disk(call, on_disk, in_bucket):
    images, bounds = [], []
    for workdir in (on_disk, in_bucket):
        assert (
            call(
                "sample",
                "--ckpt",
                workdir,
                "--num_samples",
                4,
                "--steps",
                5,
                "--out",
                workdir / "images",
            )
            == 0
        )
        images.append(read_shards(workdir / "images"))
        bound = ["--metric", "bpd", "--num_images", 8, "--timestep_stride", 5]
        assert call("evaluate", "--ckpt", workdir, *bound) == 0
        (record,) = (workdir / "evaluation").glob("*.json")
        bounds.append(json.loads(record.read_text())["per_timestep"])
    np.testing.assert_array_equal(*images)
    assert bounds[0] == bounds[1]
    assert (in_bucket / "images" / "grid.png").read_bytes() == (
        on_disk / "images" / "grid.png"
    ).read_bytes()


def test_runs_here_and_there_are_drawn_together(call, on_disk, in_bucket, folder):
    assert call("plot", on_disk, in_bucket, "--out", folder / "both.png") == 0
    assert (folder / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_newest_checkpoint_is_named_set_aside_and_passed_over(
    call, refused, capfd, config_file, on_disk, in_bucket
):
    state = in_bucket / "checkpoints" / "6" / "state"
    damaged = (state / "_METADATA").read_bytes()[:-1]
    (state / "_METADATA").write_bytes(damaged)
    sentence = refused("sample", "--ckpt", in_bucket, code=1)
    assert (
        "/6 is damaged (its file state/_METADATA is not what was written): the newest one that is "
        "whole is" in sentence
    )
    assert "that of step 4" in sentence
    capfd.readouterr()
    assert call("train", "--config", config_file, "--workdir", in_bucket) == 0
    assert (
        "it is kept as 6.damaged, and the run resumes from the one of step 4"
        in capfd.readouterr().err
    )
    assert saved_steps(in_bucket) == [2, 4, 6]
    assert (in_bucket / "checkpoints" / "6.damaged" / "state" / "_METADATA").read_bytes() == damaged
    assert _numbers(in_bucket) == _numbers(on_disk)
