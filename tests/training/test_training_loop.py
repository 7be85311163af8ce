"""The loop, with a step that only keeps a diary: what is done when, what is reported, and how it
ends."""

import io
import json
import logging
import os
import signal
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import FailureError
from ddpm_jax.monitoring import records
from ddpm_jax.monitoring.averages import ByTime
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.reporting import SINCE_RECORD
from ddpm_jax.training.state import TrainState, create
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train


class _OnDevice:
    """A metric that notes in the diary when the host first asks for it."""

    def __init__(self, value, note):
        self._value, self._note = value, note

    def __array__(self, dtype=None, copy=None):
        self._note()
        return np.asarray(self._value, dtype)


class _Diary:
    """Stands for the step, the data and the checkpoints, and writes down what the loop asks of
    them."""

    def __init__(self, start=0, loss=lambda step: 1.0 / step, during_step=lambda step: None):
        self.events, self._loss, self._during_step = [], loss, during_step
        self.state = TrainState(jnp.int32(start), {}, {"w": jnp.float32(start)}, (), ())
        self._batches, self.batch = start, {"image": np.zeros((8, 1, 1, 1), np.uint8)}

    def note(self, *event):
        self.events.append(event)

    def train_step(self, state, batch, key):
        n = int(state.step) + 1
        self.note("dispatch", n)
        self._during_step(n)
        metrics = {name: np.float32(2 * n) for name in ("grad_norm", "learning_rate")}
        metrics["loss"] = _OnDevice(self._loss(n), lambda: self.note("read", n))
        metrics["loss_q"] = (np.arange(4.0), np.ones(4))
        metrics["loss_by_t"] = ByTime(np.array([n, 3.0 * n]), np.array([1, 2]))
        return state._replace(step=jnp.int32(n), ema_params={"w": jnp.float32(n)}), metrics

    def __next__(self):
        self._batches += 1
        return self.batch

    def get_state(self):
        return {"batches": self._batches}

    def save(self, step, state, data_state, config):
        self.note("save", step, int(state.step), data_state["batches"])
        self.saved = json.loads(json.dumps(data_state))

    def wait(self):
        self.note("wait")

    def on_sample(self, step, state):
        self.note("sample", step, float(state.ema_params["w"]))

    def on_checkpoint(self, step, state):
        self.note("checkpoint", step, int(state.step))

    def on_snapshot(self, step, state):
        self.note("snapshot", step)

    def train(self, workdir, *, owes_grid=False, since_record=MappingProxyType({}), **options):
        options = {
            "num_steps": 10,
            "batch_size": 8,
            "log_every": 4,
            "sample_every": 0,
            "save_every": 100,
        } | options
        with MetricWriter(workdir) as writer:
            return train(
                Start(self.state, owes_grid, since_record),
                Steps(self.train_step),
                self,
                base_key(0),
                options=LoopOptions(**options),
                saving=Saving(self, {}, self.on_snapshot),
                observers=Observers(
                    writer,
                    Progress(options["num_steps"], file=io.StringIO()),
                    self.on_sample,
                    self.on_checkpoint,
                ),
            )

    def of(self, *kinds):
        return [event for event in self.events if event[0] in kinds]


def test_metrics_are_read_one_step_late(tmp_path):
    diary = _Diary()
    diary.train(tmp_path, num_steps=6)
    expected = [("dispatch", 1)]
    for n in range(2, 7):
        expected += [("dispatch", n), ("read", n - 1)]
    assert diary.of("dispatch", "read") == [*expected, ("read", 6)]


def test_the_step_compiles_once_though_the_state_comes_from_one_device(tmp_path, linear, caplog):
    optimizer, objective = (
        optax.sgd(1e-2),
        linear.objective()._replace(init=lambda params: jnp.zeros(8)),
    )
    _, step = linear.start(optimizer, objective=objective)
    diary = _Diary()
    diary.state, diary.train_step, diary.batch = (
        create(linear.params(), optimizer, objective),
        step,
        linear.batch(8),
    )
    diary.on_sample = lambda step, state: None
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        diary.train(tmp_path)
    compiled = [
        record.message
        for record in caplog.records
        if record.message.startswith("Compiling jit(_fun)")
    ]
    assert len(compiled) == 1


def test_a_record_is_the_mean_since_the_one_before(tmp_path):
    _Diary().train(tmp_path)
    written = records.read(tmp_path)
    assert [record["step"] for record in written] == [4, 8, 10]
    for record, steps in zip(written, ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10]), strict=True):
        np.testing.assert_allclose(record["loss"], np.mean([1 / n for n in steps]), rtol=1e-6)
        np.testing.assert_allclose(record["grad_norm"], np.mean([2 * n for n in steps]))
        assert record["learning_rate"] == 2 * steps[-1], "a rate, not a mean"
        assert [record[f"loss_q{q}"] for q in (1, 2, 3, 4)] == [0, 1, 2, 3]
        assert record["images_per_second"] > 0
        assert 0 <= record["data_wait"] <= 1


def test_bars_over_t_are_the_mean_since_the_record_before(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(MetricWriter, "histogram", lambda self, *what: shown.append(what))
    _Diary().train(tmp_path)
    assert [(step, name) for step, name, _ in shown] == [
        (4, "loss_by_t"),
        (8, "loss_by_t"),
        (10, "loss_by_t"),
    ]
    for (_, _, histogram), steps in zip(shown, ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10]), strict=True):
        np.testing.assert_allclose(histogram.edges, [0, 0.5, 1])
        np.testing.assert_allclose(histogram.values, [np.mean(steps), 1.5 * np.mean(steps)])


def test_grids_are_drawn_from_the_ema_every_so_many_steps_and_at_the_end_once(tmp_path):
    diary = _Diary()
    diary.train(tmp_path, num_steps=9, sample_every=3)
    assert diary.of("sample") == [("sample", n, n) for n in (3, 6, 9)]
    diary = _Diary()
    diary.train(tmp_path, num_steps=9)
    assert diary.of("sample") == [("sample", 9, 9)]


def test_saves_hold_the_state_and_the_batches_of_their_step_and_the_last_step_is_saved_once(
    tmp_path,
):
    for num_steps, saved in ((10, [4, 8, 10]), (8, [4, 8])):
        diary = _Diary()
        diary.train(tmp_path, num_steps=num_steps, save_every=4)
        assert diary.of("save", "wait") == [*(("save", n, n, n) for n in saved), ("wait",)]


def test_an_observer_hears_of_every_checkpoint_after_it_was_handed_over(tmp_path):
    diary = _Diary()
    diary.train(tmp_path, num_steps=6, save_every=4)
    assert diary.of("save", "checkpoint") == [
        *[("save", 4, 4, 4), ("checkpoint", 4, 4)],
        *[("save", 6, 6, 6), ("checkpoint", 6, 6)],
    ]


def test_what_is_due_at_a_step_begins_with_the_save_and_ends_with_the_grid(tmp_path):
    """A grid takes longer than the notice that a preempted machine gets."""
    diary = _Diary()
    diary.train(tmp_path, num_steps=5, sample_every=2, save_every=2, snapshot_every=2)
    assert [event[:2] for event in diary.of("save", "wait", "snapshot", "sample")] == [
        *[("save", 2), ("wait",), ("snapshot", 2), ("sample", 2)],
        *[("save", 4), ("wait",), ("snapshot", 4), ("sample", 4)],
        *[("save", 5), ("wait",), ("snapshot", 5), ("wait",), ("sample", 5)],
    ]


def test_a_run_stopped_between_its_save_and_what_follows_makes_that_first(tmp_path):
    diary = _Diary(start=4)
    diary.train(
        tmp_path, num_steps=5, sample_every=2, save_every=2, snapshot_every=2, owes_grid=True
    )
    done = [event[:2] for event in diary.of("dispatch", "snapshot", "sample")]
    assert done == [("snapshot", 4), ("sample", 4), ("dispatch", 5), ("snapshot", 5), ("sample", 5)]


def test_a_run_goes_on_from_the_step_of_its_state(tmp_path):
    diary = _Diary(start=6)
    outcome = diary.train(tmp_path, save_every=5)
    assert diary.of("dispatch") == [("dispatch", n) for n in (7, 8, 9, 10)]
    assert diary.of("save") == [("save", 10, 10, 10)]
    assert int(outcome.state.step) == 10
    finished = _Diary(start=10)
    finished.train(tmp_path)
    assert not finished.of("dispatch", "save", "sample")
    finished.train(tmp_path, owes_grid=True)
    assert [event[:2] for event in finished.of("dispatch", "sample")] == [("sample", 10)]


@pytest.mark.parametrize("stopped", [2, 4, 7])
def test_the_record_after_an_interruption_is_that_of_an_undisturbed_run(
    tmp_path, monkeypatch, stopped
):
    bars = []
    monkeypatch.setattr(
        MetricWriter,
        "histogram",
        lambda self, step, name, bar: bars.append((step, name, bar.values.tolist())),
    )

    def losses(n):
        return np.float32(1 / 3 * n)  # of which the order of a sum can be told

    _Diary(loss=losses).train(tmp_path / "still")
    still, bars = bars, []
    diary = _Diary(
        loss=losses,
        during_step=lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == stopped else None,
    )
    diary.train(tmp_path / "moved")
    since = diary.saved.get(SINCE_RECORD, {})
    assert bool(since) == (stopped % 4 != 0), "nothing is kept that a record has said"
    _Diary(start=stopped, loss=losses).train(tmp_path / "moved", since_record=since)
    clock = ("seconds", "images_per_second", "data_wait")
    ours, theirs = (
        [
            {name: value for name, value in record.items() if name not in clock}
            for record in records.read(tmp_path / run)
        ]
        for run in ("moved", "still")
    )
    assert ours == theirs
    assert bars == still


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_stops(tmp_path, capfd, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    diary = _Diary(during_step=lambda n: os.kill(os.getpid(), number) if n == 3 else None)
    outcome = diary.train(tmp_path, sample_every=2)
    assert outcome.interrupted_by == number
    assert int(outcome.state.step) == 3
    assert diary.events[-3:] == [("save", 3, 3, 3), ("checkpoint", 3, 3), ("wait",)]
    assert diary.of("sample") == [("sample", 2, 2)]
    assert f"{number.name}: saving after this step" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    diary = _Diary(during_step=lambda n: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        diary.train(tmp_path)
    assert not diary.of("save")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("step", "saved"), [(7, 4), (8, 4), (10, 8)])
def test_a_loss_that_is_not_finite_is_neither_recorded_nor_saved(tmp_path, value, step, saved):
    # 7 is any step, 8 one to save at, 10 the last.
    diary = _Diary(loss=lambda n: value if n == step else 1.0)
    sentence = (
        rf"^loss became {value} at step {step}\. The checkpoint of step {saved} is kept; lower"
    )
    with pytest.raises(FailureError, match=sentence):
        diary.train(tmp_path, save_every=4, log_every=1)
    assert diary.of("save")[-1] == ("save", saved, saved, saved)
    assert [record["step"] for record in records.read(tmp_path)] == list(range(1, step))


def test_before_the_first_checkpoint_the_sentence_says_so(tmp_path):
    with pytest.raises(FailureError, match="No checkpoint had been saved yet; lower"):
        _Diary(loss=lambda n: np.nan).train(tmp_path)


class _Batches:
    """The same batch for ever, but for one with a NaN in it."""

    def __init__(self, batch, poisoned):
        self._batch, self._poisoned, self._count = batch, poisoned, 0

    def __next__(self):
        self._count += 1
        return self._batch | (
            {"y": self._batch["y"] * np.nan} if self._count == self._poisoned else {}
        )

    def get_state(self):
        return {"batches": self._count}


@pytest.mark.full
@pytest.mark.parametrize(("rate", "poisoned"), [(1e-2, 8), (1e12, None)])
def test_a_diverging_run_stops_and_its_last_good_checkpoint_is_finite(
    tmp_path, linear, rate, poisoned
):
    state, step = linear.start(optax.sgd(rate))
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    with (
        MetricWriter(tmp_path) as writer,
        pytest.raises(FailureError, match=r"became (nan|inf) at step") as caught,
    ):
        train(
            Start(state),
            Steps(step),
            _Batches(linear.batch(8), poisoned),
            base_key(0),
            options=LoopOptions(100, batch_size=8, log_every=1, sample_every=0, save_every=1),
            saving=Saving(checkpointer, {}),
            observers=Observers(writer, Progress(100, file=io.StringIO())),
        )
    checkpointer.close()
    stopped = 1 + records.read(tmp_path)[-1]["step"]
    assert f"at step {stopped}. The checkpoint of step {stopped - 1} is kept" in str(caught.value)
    assert stopped == (poisoned or stopped)
    template, _ = linear.start(optax.sgd(rate))
    restored, _ = Checkpointer(tmp_path, keep_last=1).restore(template)
    assert int(restored.step) == stopped - 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(restored.params))
