"""Metrics: what is on disk after a kill and a resume, what an average is, and what a person sees."""

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

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import FailureError
from ddpm_jax.training import metrics


def _steps(workdir):
    return [record["step"] for record in metrics.read(workdir)]


def _write_steps(workdir, steps, **kwargs):
    with metrics.MetricWriter(workdir, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / (1 + step)})


def _events(workdir):
    """Events of every file, oldest file first, from the framing: length u64, checksum u32, payload, checksum u32."""
    from tensorboardX.proto import event_pb2

    for path in sorted((workdir / metrics.TENSORBOARD).iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            yield event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length


def test_records_read_back_as_they_were_written(tmp_path):
    with metrics.MetricWriter(tmp_path / "run") as writer:
        writer.write(100, {"loss": np.float32(0.1), "images_per_second": 1e4})
        writer.write(200, {"loss": jnp.float32(0.25)})
    assert metrics.read(tmp_path / "run") == [
        {"step": 100, "loss": float(np.float32(0.1)), "images_per_second": 1e4},
        {"step": 200, "loss": 0.25},
    ]


def test_every_line_is_strict_json_and_nan_survives(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "grad_norm": math.inf, "fine": 2.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / metrics.RECORDS).read_text()
    assert json.loads(line, parse_constant=refuse)["fine"] == 2.0
    (record,) = metrics.read(tmp_path)
    assert math.isnan(record["loss"])
    assert math.isnan(record["grad_norm"])


def test_a_run_without_records_reads_as_none(tmp_path):
    assert metrics.read(tmp_path / "nowhere") == []


def test_nothing_is_created_before_the_first_write(tmp_path):
    metrics.MetricWriter(tmp_path / "run", resume_step=0).close()
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
    (tmp_path / metrics.RECORDS).write_bytes(kept + b'{"step": 2, "loss": 0.2}\n')
    metrics.MetricWriter(tmp_path, resume_step=1).close()
    assert (tmp_path / metrics.RECORDS).read_bytes() == kept


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_last_line_cut_anywhere_is_tolerated_and_repaired(tmp_path, cut):
    whole = b'{"step": 10, "loss": 1.0}\n'
    last = b'{"step": 20, "loss": 2.0}'
    (tmp_path / metrics.RECORDS).write_bytes(whole + last[:cut])
    assert _steps(tmp_path) == [10]
    _write_steps(tmp_path, [20], resume_step=10)
    assert _steps(tmp_path) == [10, 20]
    assert (tmp_path / metrics.RECORDS).read_bytes().count(b"\n") == 2


def test_a_last_record_that_lacks_only_its_newline_is_whole(tmp_path):
    (tmp_path / metrics.RECORDS).write_bytes(b'{"step": 10}\n{"step": 20}')
    _write_steps(tmp_path, [30], resume_step=20)
    assert _steps(tmp_path) == [10, 20, 30]


def test_a_killed_process_leaves_every_record_it_wrote(tmp_path):
    program = (
        "import os, signal, sys; from ddpm_jax.training import metrics;"
        "writer = metrics.MetricWriter(sys.argv[1]);"
        "[writer.write(step, {'loss': 0.5}) for step in range(1, 6)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert process.returncode == -signal.SIGKILL
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]
    assert [event.step for event in _events(tmp_path) if event.summary.value] == [1, 2, 3, 4, 5]


def test_tensorboard_gets_the_scalars_and_the_pixels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    with metrics.MetricWriter(tmp_path) as writer:
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


def test_tensorboard_is_told_to_forget_what_the_resumed_run_writes_again(tmp_path):
    _write_steps(tmp_path, [10, 20, 30])
    _write_steps(tmp_path, [30], resume_step=20)
    starts = [event.step for event in _events(tmp_path) if event.HasField("session_log")]
    assert starts == [21]
    assert len(list((tmp_path / metrics.TENSORBOARD).iterdir())) == 2


def test_tensorboardx_is_not_imported_before_writing():
    program = "import sys, ddpm_jax.training.metrics; assert 'tensorboardX' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    writer = metrics.MetricWriter(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(FailureError, match=r"Cannot keep the metrics in .*metrics.jsonl: No space left.*resume"):
        writer.write(1, {"loss": 0.5})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux: a device that is always full, and /proc")
def test_a_disk_that_fills_up_under_tensorboard_stops_the_run_and_does_not_hang_it(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": 0.5})
    (events,) = (tmp_path / metrics.TENSORBOARD).iterdir()
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
    averages = metrics.Averages()
    averages.add({"loss": 1.0, "lr": jnp.float32(2.0)})
    averages.add({"loss": 4.0, "lr": 2.0})
    assert averages.means() == {"loss": 2.5, "lr": 2.0}
    averages.add({"loss": 7.0})
    assert averages.means() == {"loss": 7.0}
    assert averages.means() == {}


def test_averages_of_pairs_weigh_by_the_counts_and_leave_out_the_empty_ones():
    rng = np.random.default_rng(0)
    averages, losses, quartiles = metrics.Averages(), [], []
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
    averages = metrics.Averages()
    averages.add({"accuracy": (3.0, 4)})
    averages.add({"accuracy": (1.0, 12)})
    assert averages.means() == {"accuracy": 0.25}


def test_a_loss_that_is_not_finite_shows_in_the_average():
    averages = metrics.Averages()
    averages.add({"loss": 1.0})
    averages.add({"loss": math.nan})
    assert math.isnan(averages.means()["loss"])


class _Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_counts_images_and_waiting_since_the_last_reading():
    clock = _Clock()
    throughput = metrics.Throughput(clock)
    for _ in range(4):
        with throughput.waiting_for_data():
            clock.now += 0.5
        clock.now += 1.5
        throughput.add(64)
    assert throughput.read() == {"images_per_second": 32.0, "data_wait": 0.25}
    clock.now += 2.0
    throughput.add(10)
    assert throughput.read() == {"images_per_second": 5.0, "data_wait": 0.0}


def test_throughput_leaves_out_pauses():
    clock = _Clock()
    throughput = metrics.Throughput(clock)
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
    progress = metrics.Progress(2000, file=file)
    progress.update(199)
    progress.update(200, {"loss": 0.0432, "lr": 2e-5, "images_per_second": 12345.6})
    progress.update(400, {"loss": math.nan})
    progress.close()
    assert file.getvalue() == "step 200/2000 loss 0.0432 lr 2e-05 images/s 12346\nstep 400/2000 loss nan\n"


def test_progress_on_a_terminal_is_a_bar_that_starts_where_training_resumed():
    file = _Terminal()
    progress = metrics.Progress(2000, start_step=500, file=file)
    assert re.search(r"500/2000", file.getvalue())
    for step in range(501, 2001):
        progress.update(step)
    progress.update(2000, {"loss": 0.0432, "loss_q1": 1.0, "images_per_second": 3021.0})
    progress.close()
    progress.close()
    last = file.getvalue().split("\r")[-1]
    assert "100%" in last
    assert "2000/2000" in last
    assert "loss 0.0432 images/s 3021" in last
    assert "loss_q1" not in last
