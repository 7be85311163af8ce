"""Metrics: what is on disk after a kill and a resume, what an average is, and what a person
sees."""

import io
import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import FailureError
from ddpm_jax.monitoring import metric_writer, records, tensorboard
from ddpm_jax.monitoring.averages import Averages, ByTime, Histogram
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.monitoring.records import Records
from ddpm_jax.monitoring.throughput import Throughput


def _steps(workdir):
    return [record["step"] for record in records.read(workdir)]


def _write_steps(workdir, steps, **kwargs):
    with metric_writer.MetricWriter(workdir, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / (1 + step)})


def _events(workdir):
    """Events of every file, oldest file first, from the framing: length u64, checksum u32, payload,
    checksum u32."""
    from tensorboardX.proto import event_pb2

    for path in sorted((workdir / tensorboard.TENSORBOARD).iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            yield event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length


def test_records_read_back_as_they_were_written(tmp_path):
    with metric_writer.MetricWriter(tmp_path / "run") as writer:
        writer.write(100, {"loss": np.float32(0.1), "images_per_second": 1e4})
        writer.write(200, {"loss": jnp.float32(0.25)})
    written = records.read(tmp_path / "run")
    assert all(0 <= record.pop("seconds") < 60 for record in written)
    assert written == [
        {"step": 100, "loss": float(np.float32(0.1)), "images_per_second": 1e4},
        {"step": 200, "loss": 0.25},
    ]


def test_every_line_is_strict_json_and_nan_survives(tmp_path):
    with metric_writer.MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "grad_norm": math.inf, "fine": 2.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / records.RECORDS).read_text()
    assert json.loads(line, parse_constant=refuse)["fine"] == 2.0
    (record,) = records.read(tmp_path)
    assert math.isnan(record["loss"])
    assert math.isnan(record["grad_norm"])


def test_a_run_without_records_reads_as_none(tmp_path):
    assert records.read(tmp_path / "nowhere") == []


def test_nothing_is_created_before_the_first_write(tmp_path):
    metric_writer.MetricWriter(tmp_path / "run", resume_step=0).close()
    assert not (tmp_path / "run").exists()


def test_resuming_removes_what_will_be_written_again(tmp_path):
    _write_steps(tmp_path, [10, 20, 30, 40])
    _write_steps(tmp_path, [30, 40, 50], resume_step=20)
    assert _steps(tmp_path) == [10, 20, 30, 40, 50]


def test_without_a_resume_step_all_records_are_kept(tmp_path):
    _write_steps(tmp_path, [10, 20])
    _write_steps(tmp_path, [30])
    assert _steps(tmp_path) == [10, 20, 30]


def test_resuming_leaves_kept_lines_byte_for_byte(tmp_path):
    kept = b'{"step": 1,  "loss": 0.10}\n'  # Spacing and digits that this writer would not produce.
    (tmp_path / records.RECORDS).write_bytes(kept + b'{"step": 2, "loss": 0.2}\n')
    metric_writer.MetricWriter(tmp_path, resume_step=1).close()
    assert (tmp_path / records.RECORDS).read_bytes() == kept


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_last_line_cut_anywhere_is_tolerated_and_repaired(tmp_path, cut):
    whole = b'{"step": 10, "loss": 1.0}\n'
    last = b'{"step": 20, "loss": 2.0}'
    (tmp_path / records.RECORDS).write_bytes(whole + last[:cut])
    assert _steps(tmp_path) == [10]
    _write_steps(tmp_path, [20], resume_step=10)
    assert _steps(tmp_path) == [10, 20]
    assert (tmp_path / records.RECORDS).read_bytes().count(b"\n") == 2


def test_a_last_record_that_lacks_only_its_newline_is_whole(tmp_path):
    (tmp_path / records.RECORDS).write_bytes(b'{"step": 10}\n{"step": 20}')
    _write_steps(tmp_path, [30], resume_step=20)
    assert _steps(tmp_path) == [10, 20, 30]


def test_a_killed_process_leaves_every_record_it_wrote(tmp_path):
    program = (
        "import os, signal, sys; from ddpm_jax.monitoring import metric_writer;"
        "writer = metric_writer.MetricWriter(sys.argv[1]);"
        "[writer.write(step, {'loss': 0.5}) for step in range(1, 6)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert process.returncode == -signal.SIGKILL
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]
    assert [event.step for event in _events(tmp_path) if event.summary.value] == [1, 2, 3, 4, 5]


def test_tensorboard_gets_the_scalars_and_the_pixels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    with metric_writer.MetricWriter(tmp_path) as writer:
        writer.write(3, {"loss": 0.5, "grad_norm": 2.0})
        writer.image(3, "samples", picture)
        writer.image(3, "digits", picture[..., :1])
    values = {value.tag: value for event in _events(tmp_path) for value in event.summary.value}
    assert all(event.step == 3 for event in _events(tmp_path) if event.summary.value)
    assert values["loss"].simple_value == 0.5
    assert values["grad_norm"].simple_value == 2.0
    stored = Image.open(io.BytesIO(values["samples"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(stored), picture)
    digits = Image.open(io.BytesIO(values["digits"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(digits.convert("L")), picture[..., 0])


def test_tensorboard_gets_bars_with_the_edges_and_heights_they_were_given(tmp_path):
    edges, heights = np.array([0.0, 0.5, 0.75, 1.0]), np.array([3.0, 0.0, 0.25])
    with metric_writer.MetricWriter(tmp_path) as writer:
        writer.histogram(7, "loss_by_t", Histogram(edges, heights))
    (event,) = [event for event in _events(tmp_path) if event.summary.value]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (7, "loss_by_t")
    assert [value.histo.min, *value.histo.bucket_limit] == edges.tolist()
    assert list(value.histo.bucket) == heights.tolist()
    assert value.histo.max == 1.0
    assert value.histo.sum / value.histo.num == pytest.approx((3 * 0.25 + 0.25 * 0.875) / 3.25)


def test_tensorboard_itself_reads_the_bars_the_numbers_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    # In a process of its own: its imports warn of what is none of ours.
    with metric_writer.MetricWriter(tmp_path) as writer:
        writer.write(7, {"loss": 0.5})
        writer.histogram(7, "loss_by_t", Histogram(np.linspace(0, 1, 31), np.arange(30.0)))
        writer.image(7, "samples", np.zeros((4, 6, 3), np.uint8))
    program = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
read = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0})
read.Reload()
[loss], [bars], [image] = read.Scalars("loss"), read.Histograms("loss_by_t"), read.Images("samples")
histogram = bars.histogram_value
found = [loss.step, loss.value, bars.step, histogram.bucket_limit, histogram.bucket, image.width]
print(json.dumps(found))
"""
    events = str(tmp_path / tensorboard.TENSORBOARD)
    done = subprocess.run(
        [sys.executable, "-c", program, events], capture_output=True, text=True, check=True
    )
    step, loss, bars_step, limits, heights, width = json.loads(done.stdout)
    assert (step, loss, bars_step, width) == (7, 0.5, 7, 6)
    np.testing.assert_allclose(limits, np.linspace(0, 1, 31)[1:])
    np.testing.assert_allclose(heights, np.arange(30.0))


def test_seconds_run_on_over_a_resume_and_forget_what_is_done_again(tmp_path):
    clock = _Clock()
    begun = Records(tmp_path, clock=clock)
    for step in (1, 2, 3):
        clock.now += 10
        begun.append(step, {"loss": 0.5})
    clock.now += 1000  # interrupted
    resumed = Records(tmp_path, resume_step=2, clock=clock)
    clock.now += 7
    resumed.append(3, {"loss": 0.5})
    assert [(record["step"], record["seconds"]) for record in records.read(tmp_path)] == [
        (1, 10),
        (2, 20),
        (3, 27),
    ]


def test_what_is_measured_on_a_grid_joins_the_record_of_its_step(tmp_path):
    with metric_writer.MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": 0.25})
        writer.write(2, {"colour_shift": 3.0})
    assert _steps(tmp_path) == [1, 2]
    assert {"loss": 0.25, "colour_shift": 3.0}.items() <= records.read(tmp_path)[-1].items()


def test_a_finished_run_started_again_records_its_last_grid_once(tmp_path):
    for resume_step in (0, 2):
        with metric_writer.MetricWriter(tmp_path, resume_step=resume_step) as writer:
            if not resume_step:
                writer.write(2, {"loss": 0.25})
            writer.write(2, {"colour_shift": 3.0})
    assert (tmp_path / records.RECORDS).read_text().count("colour_shift") == 1


def test_tensorboard_is_told_to_forget_what_the_resumed_run_writes_again(tmp_path):
    _write_steps(tmp_path, [10, 20, 30])
    _write_steps(tmp_path, [30], resume_step=20)
    starts = [event.step for event in _events(tmp_path) if event.HasField("session_log")]
    assert starts == [21]
    assert len(list((tmp_path / tensorboard.TENSORBOARD).iterdir())) == 2


def test_tensorboardx_is_not_imported_before_writing():
    program = (
        "import sys, ddpm_jax.monitoring.metric_writer; assert 'tensorboardX' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    writer = metric_writer.MetricWriter(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(
        FailureError,
        match=r"Cannot keep the metrics in .*metrics.jsonl: No space left.*resume",
    ):
        writer.write(1, {"loss": 0.5})


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux: a device that is always full, and /proc"
)
def test_a_disk_that_fills_up_under_tensorboard_stops_the_run_and_does_not_hang_it(tmp_path):
    writer = metric_writer.MetricWriter(tmp_path)
    writer.write(1, {"loss": 0.5})
    (events,) = (tmp_path / tensorboard.TENSORBOARD).iterdir()
    (descriptor,) = [
        int(entry.name)
        for entry in pathlib.Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and os.path.realpath(entry) == str(events)
    ]
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), descriptor)
    with pytest.raises(FailureError, match=r"tensorboard: No space left"):
        writer.write(2, {"loss": 0.5})
    writer.close()


def test_averages_are_means_since_the_last_reading():
    averages = Averages()
    averages.add({"loss": 1.0, "lr": jnp.float32(2.0)})
    averages.add({"loss": 4.0, "lr": 2.0})
    assert averages.means() == {"loss": 2.5, "lr": 2.0}
    averages.add({"loss": 7.0})
    assert averages.means() == {"loss": 7.0}
    assert averages.means() == {}


def test_averages_of_pairs_weigh_by_the_counts_and_leave_out_the_empty_ones():
    rng = np.random.default_rng(0)
    averages, losses, quartiles = Averages(), [], []
    for _ in range(5):
        loss, quartile = rng.uniform(size=6), rng.integers(0, 3, 6)  # Never the last quartile.
        sums = [loss[quartile == q].sum() for q in range(4)]
        counts = [(quartile == q).sum() for q in range(4)]
        averages.add({"loss_q": (jnp.array(sums), jnp.array(counts))})
        losses.append(loss)
        quartiles.append(quartile)
    losses, quartiles = np.concatenate(losses), np.concatenate(quartiles)
    means = averages.means()
    assert list(means) == ["loss_q1", "loss_q2", "loss_q3"]
    for q in range(3):
        # The sums passed through float32.
        assert means[f"loss_q{q + 1}"] == pytest.approx(losses[quartiles == q].mean(), rel=1e-6)


def test_averages_of_scalar_pairs_keep_their_name():
    averages = Averages()
    averages.add({"accuracy": (3.0, 4)})
    averages.add({"accuracy": (1.0, 12)})
    assert averages.means() == {"accuracy": 0.25}


def test_averages_by_time_are_bars_over_the_chain_with_none_where_no_t_fell():
    rng = np.random.default_rng(0)
    averages, losses, parts = Averages(), [], []
    for _ in range(3):
        loss, part = rng.uniform(size=40), rng.integers(0, 4, 40)  # Never the last of five.
        sums, counts = np.bincount(part, loss, 5), np.bincount(part, minlength=5)
        averages.add({"loss_by_t": ByTime(jnp.array(sums), jnp.array(counts)), "loss": 1.0})
        losses.append(loss)
        parts.append(part)
    losses, parts = np.concatenate(losses), np.concatenate(parts)
    assert averages.means() == {"loss": 1.0}
    (histogram,) = averages.histograms().values()
    np.testing.assert_allclose(histogram.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    # The sums passed through float32.
    np.testing.assert_allclose(
        histogram.values, [*(losses[parts == i].mean() for i in range(4)), 0], rtol=1e-6
    )
    assert averages.histograms() == {}


def test_a_loss_that_is_not_finite_shows_in_the_average():
    averages = Averages()
    averages.add({"loss": 1.0})
    averages.add({"loss": math.nan})
    assert math.isnan(averages.means()["loss"])


class _Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class _OnDevice:
    """The result of a call: arrives when `finish` is called."""

    def __init__(self):
        self._event = threading.Event()

    def block_until_ready(self):
        assert self._event.wait(60)

    def finish(self, throughput):
        """Returns when the throughput knows of it."""
        self._event.set()
        while throughput._watch.idle_since() is None:
            time.sleep(1e-3)


def test_throughput_counts_images_and_waiting_since_the_last_reading():
    clock = _Clock()
    throughput = Throughput(clock)
    for _ in range(4):
        with throughput.waiting_for_data():
            clock.now += 0.5
        clock.now += 1.5
        result = _OnDevice()
        throughput.add(64, result)
        result.finish(throughput)
    assert throughput.read() == {"images_per_second": 32.0, "data_wait": 0.25}
    clock.now += 2.0
    throughput.add(10)
    assert throughput.read() == {"images_per_second": 5.0, "data_wait": 0.0}


@pytest.mark.parametrize(("fetching", "computing", "share"), [(4.0, 3.0, 0.25), (3.0, 4.0, 0.0)])
def test_fetching_while_the_device_works_is_not_waiting(fetching, computing, share):
    # The loop fetches batch n+1 while call n runs; the slower of the two sets the pace.
    clock = _Clock()
    throughput = Throughput(clock)
    for _ in range(3):
        result = _OnDevice()
        throughput.add(1, result)
        with throughput.waiting_for_data():
            if computing < fetching:
                clock.now += computing
                result.finish(throughput)
                clock.now += fetching - computing
            else:
                clock.now += fetching
        if computing >= fetching:
            clock.now += computing - fetching
            result.finish(throughput)
    assert throughput.read()["data_wait"] == share


def test_a_result_that_fails_on_the_device_ends_the_watch_of_nothing_else():
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    clock = _Clock()
    throughput = Throughput(clock)
    throughput.add(1, Broken())
    result = _OnDevice()
    throughput.add(1, result)
    result.finish(throughput)
    with throughput.waiting_for_data():
        clock.now += 2.0
    assert throughput.read()["data_wait"] == 1.0


def test_throughput_leaves_out_pauses():
    clock = _Clock()
    throughput = Throughput(clock)
    clock.now += 1.0
    throughput.add(10)
    with throughput.paused():
        clock.now += 50.0
    assert throughput.read() == {"images_per_second": 10.0, "data_wait": 0.0}
    assert throughput.read() == {}


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_file_is_one_plain_line_for_each_report():
    file = io.StringIO()
    progress = Progress(2000, file=file)
    progress.update(199)
    progress.update(
        200, {"loss": 0.0432, "lr": 2e-5, "images_per_second": 12345.6, "data_wait": 0.0312}
    )
    progress.say("look here")
    progress.update(400, {"loss": math.nan})
    progress.close()
    assert file.getvalue() == (
        "step 200/2000 loss 0.0432 lr 2e-05 images/s 12346 data wait 3.1%\nlook here\nstep "
        "400/2000 loss nan\n"
    )


def test_progress_on_a_terminal_is_a_bar_that_starts_where_training_resumed():
    file = _Terminal()
    progress = Progress(2000, start_step=500, file=file)
    assert re.search(r"500/2000", file.getvalue())
    for step in range(501, 2001):
        progress.update(step)
    progress.say("look here")
    progress.update(
        2000, {"loss": 0.0432, "loss_q1": 1.0, "images_per_second": 3021.0, "data_wait": 0.5}
    )
    progress.close()
    progress.close()
    last = file.getvalue().split("\r")[-1]
    assert "100%" in last
    assert "2000/2000" in last
    assert "loss 0.0432 images/s 3021 data wait 50.0%" in last
    assert "look here\n" in file.getvalue()
    assert "loss_q1" not in last
