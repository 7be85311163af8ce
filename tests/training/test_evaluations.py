"""A metric of samples while a run trains: its numbers are those of `evaluate`, the weights of the
best are kept, a run without improvement ends, and training itself is as without."""

import itertools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import from_dict
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.measuring.feature_metrics import FEATURE_METRICS
from ddpm_jax.measuring.image_comparison import compare_images
from ddpm_jax.measuring.running_comparison import RunningComparison
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.training_runs import evaluations
from ddpm_jax.training_runs.training_data import open_split

EVAL = {
    "metric": "fid",
    "every_steps": 4,
    "num_samples": 6,
    "features": "digits",
    "sample_steps": 2,
}
EVAL |= {"batch_size": 4}


class Best:
    """The steps whose weights were kept."""

    def __init__(self):
        self.kept = []

    def keep(self, step, params, frozen):
        self.kept.append(step)


class State(NamedTuple):
    """What an evaluation takes of a `TrainState`."""

    params: dict
    ema_params: dict
    frozen: tuple


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fields(data_dir):
    """The config of a small model of the digits, trained for ten steps."""
    return {
        "data": {"name": "digits", "data_dir": data_dir, "image_size": 8, "channels": 1},
        "diffusion": {"num_timesteps": 20},
        "model": {"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2},
        "ema": {"decay": 0.5},
        "train": {"num_steps": 10, "batch_size": 8, "sample_every": 0, "num_samples": 2}
        | {"sample_steps": 2},
        "checkpoint": {"save_every": 4, "keep_last": 9},
        "eval": EVAL,
    }


def evaluated(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return {record["step"]: record["eval_fid"] for record in records if "eval_fid" in record}


def test_every_metric_of_the_config_is_there():
    metrics = [name for name in FIELDS["eval.metric"].choices if name]
    assert set(metrics) <= set(FEATURE_METRICS)
    assert "fid" in metrics


@pytest.mark.slow
def test_values_are_those_of_evaluate_and_the_best_weights_are_kept(fields, data_dir, tmp_path):
    result = ddpm_jax.train(fields, tmp_path / "run")
    found = evaluated(result.workdir)
    assert list(found) == [4, 8, 10]
    for step in (4, 8):
        samples = ddpm_jax.load(result.workdir, step=step).sample(
            6, sampler="ddim", steps=2, seed=0, batch_size=4
        )
        record = compare_images(
            samples, "digits:train", "fid", features="digits", data_dir=data_dir
        )["fid"]
        assert found[step] == pytest.approx(record["value"], rel=1e-3)
    best = ddpm_jax.load(result.workdir / "best")
    assert best.trained.step == min(found, key=found.get)

    # Nothing of the training depends on it, and a run stopped between two is the same.
    alone = ddpm_jax.train(fields | {"eval": {}}, tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, result.state.params, alone.state.params)

    class Stop(ddpm_jax.Callback):
        def on_checkpoint(self, step, state):
            raise ddpm_jax.StopTraining

    parts = tmp_path / "parts"
    assert ddpm_jax.train(fields, parts, callbacks=Stop()).step == 4
    # It was stopped between the checkpoint and its evaluation, which is made up for.
    assert not (parts / "metrics.jsonl").exists()
    again = ddpm_jax.train(fields, parts)
    jax.tree.map(np.testing.assert_array_equal, result.state.params, again.state.params)
    assert evaluated(parts) == pytest.approx(found)


@pytest.mark.slow
def test_a_run_without_improvement_ends_and_stays_ended(fields, tmp_path, monkeypatch):
    values = itertools.chain([3.0, 2.0, 2.5, 4.0], itertools.repeat(9.0))
    monkeypatch.setattr(RunningComparison, "value", lambda self, samples: next(values))
    fields["eval"] = EVAL | {"every_steps": 2, "patience": 2}
    fields["train"]["num_steps"] = 20
    result = ddpm_jax.train(fields, tmp_path / "run")
    assert result.interrupted_by == Wish.CALLBACK
    assert 8 <= result.step < 12  # the wish is heard a step or two later
    assert ddpm_jax.load(result.workdir / "best").trained.step == 4
    again = ddpm_jax.train(fields, tmp_path / "run")
    assert again.is_finished
    assert again.step == result.step


@pytest.mark.full
def test_only_values_of_the_same_settings_count(fields, tmp_path, monkeypatch):
    """5 and then 6 are no improvement, whatever was measured otherwise before: 1, 2, 3..."""
    best, interrupt = Best(), Interrupt("")

    def evaluate(step, value, **more):
        config = from_dict(fields | {"eval": EVAL | {"patience": 1} | more}, source="test")
        model, source = build(config), open_split(config, tmp_path)
        monkeypatch.setattr(RunningComparison, "value", lambda self, samples: value)
        with MetricWriter(tmp_path) as writer, monkeypatch.context() as patched:
            patched.setattr(evaluations, "BestWeights", lambda *_: best)
            patched.setattr(evaluations, "make_draw", lambda model: lambda *_: None)
            found = evaluations.make_evaluations(
                model, source, tmp_path, {}, interrupt=interrupt, start=9**9, whole=lambda x: x
            )
            found.evaluate(step, State({}, {}, ()), writer, Progress(99))
        return found.is_exhausted

    monkeypatch.setattr(DiffusionModel, "weights", lambda self, params, frozen: params)
    others = [{"num_samples": 7}, {"num_reference": 9}, {"sampler": "dpmpp_2m"}]
    others += [{"sample_steps": 3}, {"features": "pixels"}]
    for step, other in enumerate(others, start=1):
        assert not evaluate(step, float(step), **other)
    assert best.kept == [1, 2, 3, 4, 5], "each the first of its settings"
    assert not evaluate(6, 5.0)
    assert evaluate(7, 6.0)
    assert best.kept == [1, 2, 3, 4, 5, 6]
    assert not evaluate(8, 0.5, sample_steps=3), "better than the 4 of its settings"
    assert evaluate(8, 0.1), "a step that was evaluated is not evaluated again"


@pytest.mark.full
def test_what_cannot_be_evaluated_is_refused_before_training(fields, tmp_path):
    for more, says in (
        ({"features": "dgits"}, "Did you mean 'digits'"),
        ({"sampler": "dim"}, "Unknown sampler"),
        ({"metric": "fid_infinity"}, "take more than 320 samples"),
        ({"sample_steps": 21}, "21"),
        (
            {"metric": "is", "features": "pixels", "num_samples": 10},
            "needs a network that classifies",
        ),
    ):
        with pytest.raises(UsageError) as error:
            ddpm_jax.train(fields | {"eval": EVAL | more}, tmp_path / "run")
        assert says in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )
