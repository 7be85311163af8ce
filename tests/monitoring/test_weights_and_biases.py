"""Weights & Biases: what the real package keeps without a network, and that nothing it does stops a
run."""

import json
import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.monitoring.averages import Histogram
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.weights_and_biases import RUN_ID, WeightsAndBiases

PROGRAM = """
import pathlib, sys
import numpy as np
from ddpm_jax.monitoring.averages import Histogram
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.weights_and_biases import WeightsAndBiases
workdir = pathlib.Path(sys.argv[1])
for resume_step, step in ((0, 10), (10, 20)):
    viewer = WeightsAndBiases(workdir, "digits", {"model": {"ch": 32}})
    with MetricWriter(workdir, resume_step=resume_step, viewers=[viewer]) as writer:
        writer.write(step, {"loss": 1 / step})
        writer.histogram(step, "loss_by_t", Histogram(np.linspace(0, 1, 5), np.arange(4.0)))
        writer.image(step, "samples", np.zeros((4, 6, 1), np.uint8))
"""
READ = """
import json, pathlib, struct, sys
from wandb.proto.wandb_internal_pb2 import Record

def records(path):
    # A log of LevelDB: a header of 7 bytes, then checksum u32, length u16, kind u8 (1: whole) and
    # payload.
    data, place = path.read_bytes(), 7
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        assert kind == 1
        yield Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length

found = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            found.append(["run", record.run.run_id, record.run.project, record.run.display_name, config.get("model")])
        elif kind == "history":
            names = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append(["history", names])
print(json.dumps(found))
"""


def _python(program, *argv):
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", program, *map(str, argv)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_resumed_run_goes_on_in_the_same_run_of_the_real_package(tmp_path):
    # In processes of its own: the package starts one, and its imports warn of what is none of ours.
    pytest.importorskip("wandb")
    workdir = tmp_path / "mine"
    _python(PROGRAM, workdir)
    found = json.loads(_python(READ, workdir))
    runs = [entry[1:] for entry in found if entry[0] == "run" and entry[4]]
    assert runs == 2 * [[(workdir / RUN_ID).read_text(), "digits", "mine", {"ch": 32}]]
    history = [entry[1] for entry in found if entry[0] == "history"]
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [
        (10, 0.1),
        (20, 0.05),
    ]
    bars = [row for row in history if "loss_by_t/values" in row]
    assert [row["step"] for row in bars] == [10, 20]
    assert bars[0]["loss_by_t/values"] == [0, 1, 2, 3]
    assert bars[0]["loss_by_t/bins"] == [0, 0.25, 0.5, 0.75, 1]
    pictures = [row for row in history if "samples/path" in row]
    assert [(row["samples/width"], row["samples/height"]) for row in pictures] == [(6, 4), (6, 4)]
    assert len(list(workdir.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2


class _Run:
    """A run that remembers, or fails."""

    def __init__(self, broken):
        self.logged, self.finished, self._broken = [], 0, broken

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        if self._broken:
            raise ConnectionError("the server\nis gone")
        self.logged.append(values)

    def finish(self):
        self.finished += 1


class _Package(types.ModuleType):
    """Stands for the package `wandb`."""

    def __init__(self, *, refuses=(), broken=False):
        super().__init__("wandb")
        self.started, self._refuses, self._broken = [], refuses, broken
        self.Settings = lambda **options: options
        self.Image = lambda pixels: ("image", pixels.shape)
        self.Histogram = lambda np_histogram: ("bars", *(part.tolist() for part in np_histogram))

    def init(self, **options):
        mode = options.get("mode", "online")
        if mode in self._refuses:
            raise RuntimeError("no API key configured")
        self.run = _Run(self._broken)
        self.started.append(options)
        return self.run


@pytest.fixture
def package(monkeypatch):
    """package(...) -> a stand-in for the package, to be imported in its place."""

    def install(**options):
        made = _Package(**options)
        monkeypatch.setitem(sys.modules, "wandb", made)
        return made

    return install


def _write(workdir, step):
    with MetricWriter(
        workdir, viewers=[WeightsAndBiases(workdir, "team/digits", {"seed": 0})]
    ) as writer:
        writer.write(step, {"loss": np.float32(0.5)})
        writer.histogram(step, "loss_by_t", Histogram(np.array([0.0, 1.0]), np.array([3.0])))
        writer.image(step, "samples", np.zeros((4, 6, 3), np.uint8))
        writer.write(step + 1, {"loss": 0.25})


def test_it_is_told_what_tensorboard_is_told_and_the_id_stays(tmp_path, package):
    wandb = package()
    _write(tmp_path / "mine", 7)
    assert wandb.run.logged == [
        {"step": 7, "loss": 0.5},
        {"step": 7, "loss_by_t": ("bars", [3.0], [0.0, 1.0])},
        {"step": 7, "samples": ("image", (4, 6, 3))},
        {"step": 8, "loss": 0.25},
    ]
    assert wandb.run.finished == 1
    _write(tmp_path / "mine", 9)
    first, second = wandb.started
    assert first["id"] == second["id"] == (tmp_path / "mine" / RUN_ID).read_text()
    assert [first[name] for name in ("entity", "project", "name", "resume")] == [
        "team",
        "digits",
        "mine",
        "allow",
    ]
    assert first["dir"] == str(tmp_path / "mine")
    assert first["config"] == {"seed": 0}


def test_where_it_cannot_be_reached_the_run_is_kept_on_disk(tmp_path, package, caplog):
    wandb = package(refuses=("online",))
    _write(tmp_path, 7)
    assert [options["mode"] for options in wandb.started] == ["offline"]
    assert len(wandb.run.logged) == 4
    (warning,) = caplog.records
    assert "no API key configured" in warning.message
    assert "wandb sync" in warning.message


@pytest.mark.parametrize(
    ("options", "warnings"),
    [({"broken": True}, 1), ({"refuses": ("online", "offline")}, 2)],
    ids=["later", "at once"],
)
def test_its_failures_are_said_once_and_the_records_go_on(
    tmp_path, package, caplog, options, warnings
):
    package(**options)
    with caplog.at_level(logging.WARNING):
        _write(tmp_path, 7)
    assert len(caplog.records) == warnings
    assert "left out from here on" in caplog.records[-1].message
    assert "\n" not in caplog.records[-1].message
    assert (tmp_path / "metrics.jsonl").read_text().count("loss") == 2


@pytest.mark.parametrize(
    "module", [None, types.ModuleType("wandb")], ids=["absent", "a folder of that name"]
)
def test_without_the_package_the_sentence_says_how_to_get_it(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(
        UsageError,
        match=r"--wandb needs the package wandb: install it with pip install -e '\.\[wandb\]'",
    ):
        WeightsAndBiases(tmp_path, "digits", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("project", ["", "team/"])
def test_no_project_is_refused(tmp_path, project):
    with pytest.raises(UsageError, match="name a project, as in --wandb digits"):
        WeightsAndBiases(tmp_path, project, {})
