"""`ddpm_jax.train`: a run from Python, what its callbacks hear, how it is resumed and stopped."""

import shutil
import threading

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.distributed.interrupt import Wish
from ddpm_jax.errors import UsageError
from ddpm_jax.monitoring.records import read


def make_config(data_dir, num_steps=4):
    return {
        "data": {"name": "digits", "data_dir": data_dir, "image_size": 8, "channels": 1},
        "diffusion": {"num_timesteps": 4},
        "model": {"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()},
        "train": {
            "num_steps": num_steps,
            "batch_size": 8,
            "log_every": 2,
            "sample_every": 0,
            "num_samples": 4,
            "sample_steps": 4,
        },
        "checkpoint": {"save_every": 2},
    }


class Diary(ddpm_jax.Callback):
    def __init__(self, stop_at=None, error=ddpm_jax.StopTraining):
        self.events, self._stop_at, self._error = [], stop_at, error

    def on_record(self, step, metrics):
        if "loss" in metrics:
            self.events.append(("record", step, float(metrics["loss"])))
        if step == self._stop_at:
            raise self._error

    def on_sample(self, step, state):
        self.events.append(("sample", step, int(state.step)))

    def on_checkpoint(self, step, state):
        self.events.append(("checkpoint", step, int(state.step)))


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """(the result of a run of four steps, its diary)."""
    diary, workdir = Diary(), tmp_path_factory.mktemp("finished") / "run"
    return ddpm_jax.train(make_config(data_dir), workdir=workdir, callbacks=[diary]), diary


@pytest.mark.full
def test_a_run_from_python_leaves_what_the_command_leaves(finished):
    result, _ = finished
    assert (result.step, int(result.state.step), result.is_finished) == (4, 4, True)
    assert result.curve.is_file()
    assert {path.name for path in result.workdir.iterdir()} >= {
        "checkpoints",
        "config.json",
        "loss.png",
        "metrics.jsonl",
        "samples",
    }
    kernel = result.state.ema_params["conv_in"]["kernel"]
    assert np.all(np.isfinite(kernel))


@pytest.mark.full
def test_callbacks_hear_of_every_record_sample_and_checkpoint(finished):
    result, diary = finished
    losses = {record["step"]: record["loss"] for record in read(result.workdir) if "loss" in record}
    assert diary.events == [
        ("record", 2, losses[2]),
        ("checkpoint", 2, 2),
        ("record", 4, losses[4]),
        ("checkpoint", 4, 4),
        ("sample", 4, 4),
    ]


@pytest.mark.slow
def test_the_same_call_with_more_steps_resumes_even_in_a_thread(finished, data_dir, tmp_path):
    """Only the main thread can be given signals; a run in another one does without."""
    workdir = shutil.copytree(finished[0].workdir, tmp_path / "run")
    diary, results = Diary(), []
    config = make_config(data_dir, num_steps=6)
    thread = threading.Thread(
        target=lambda: results.append(ddpm_jax.train(config, workdir, callbacks=[diary]))
    )
    thread.start()
    thread.join()
    assert results[0].step == 6
    assert [event[:2] for event in diary.events] == [
        ("record", 6),
        ("checkpoint", 6),
        ("sample", 6),
    ]


@pytest.mark.full
def test_a_callback_stops_the_run_after_a_save(data_dir, tmp_path):
    diary = Diary(stop_at=2)
    result = ddpm_jax.train(
        make_config(data_dir, num_steps=50), tmp_path / "run", callbacks=[diary]
    )
    assert result.interrupted_by == Wish.CALLBACK
    assert result.step < 5
    assert diary.events[-1] == ("checkpoint", result.step, result.step)
    assert not list((tmp_path / "run").glob("samples/*"))


@pytest.mark.slow
def test_another_error_of_a_callback_is_the_callers(data_dir, tmp_path):
    diary = Diary(stop_at=2, error=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        ddpm_jax.train(make_config(data_dir), tmp_path / "run", callbacks=[diary])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "workdir is missing: name a directory"),
        ({"workdir": "run", "max_seconds": 0}, "max_seconds is 0"),
        ({"workdir": "run", "profile": (9, 10)}, "profile is 9:10, but this run has the steps"),
        ({"workdir": "a\\b"}, "Checkpoints cannot be kept in"),
    ],
)
def test_a_setting_that_cannot_work_is_named_without_dashes(
    data_dir, tmp_path, monkeypatch, settings, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        ddpm_jax.train(make_config(data_dir), **settings)
    assert str(caught.value).startswith(says)
    assert not list(tmp_path.glob("*/checkpoints/*"))
