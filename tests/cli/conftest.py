"""A small run, shipped for all tests here, others that they train, and calls of the commands."""

import functools
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ddpm_jax.__main__ import module_of
from ddpm_jax.checkpoints import digests
from ddpm_jax.cli import command

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "tests" / "fixtures" / "runs"
FIELDS = """{{
    "data": {{"name": "digits", "data_dir": {data_dir!r}, "image_size": 8, "channels": 1, "flip": False}},
    "diffusion": {{"num_timesteps": 20}},
    "model": {{"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.0}},
    "optimizer": {{"warmup_steps": 2}},
    "ema": {{"decay": 0.5}},
    "train": {{
        "num_steps": {num_steps}, "batch_size": 8, "log_every": 2, "sample_every": 0, "num_samples": 4,
        "sample_steps": 20,
    }},
    "checkpoint": {{"save_every": 4}},
}}"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def write_config(path: pathlib.Path, *, data_dir: str, num_steps: int) -> pathlib.Path:
    fields = FIELDS.format(data_dir=data_dir, num_steps=num_steps)
    path.write_text(f"def get_config():\n    return {fields}\n")
    return path


def find_main(name: str) -> Callable:
    return importlib.import_module(f"ddpm_jax.cli.{module_of(name)}").main


def train_on_devices(devices, *argv):
    """Runs train.py in a process that has so many virtual devices; returns what it said."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-W", "error", "train.py", *map(str, argv)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture
def invoke(capfd):
    """invoke("sample", "--ckpt", ...) -> Result: the command as `python sample.py` runs it, in this
    process."""

    def invoke(name, *argv):
        capfd.readouterr()
        code = command.run(find_main(name), [str(argument) for argument in argv])
        return Result(code, *capfd.readouterr())

    return invoke


@pytest.fixture
def refused(invoke):
    """refused("train", ..., says=[...]): fails unless the command ends with one sentence that holds
    these words."""

    def refused(name, *argv, says, code=2):
        result = invoke(name, *argv)
        assert result.code == code, result
        assert result.err.startswith("error: "), result.err
        assert result.err.count("\n") == 1, result.err
        assert result.out == ""
        for words in says:
            assert words in result.err

    return refused


@pytest.fixture(scope="session")
def shipped(tmp_path_factory, data_dir):
    """shipped("vae") -> a copy of a run in `tests/fixtures`, as if its data were in `data_dir`."""

    @functools.cache
    def copy(name):
        run = tmp_path_factory.mktemp("shipped") / "run"
        shutil.copytree(SHIPPED / name, run)
        for path in (run / "config.json", *run.glob("checkpoints/*/config/metadata")):
            text, before = path.read_text(), '"data_dir": ""'
            assert text.count(before) == 1
            path.write_text(text.replace(before, f'"data_dir": {json.dumps(data_dir)}'))
        for path in run.glob(f"checkpoints/*/config/{digests.SUMS}"):
            path.unlink()
            digests.write(path.parent)
        return run

    return copy


@pytest.fixture(scope="session")
def trained(shipped):
    """The directory of a run of ten steps on the digits: read it, do not train in it."""
    return shipped("ten_steps")


@pytest.fixture(scope="session")
def train_with(tmp_path_factory, data_dir):
    """train_with("--config.seed=1", ...) -> the directory of a run of ten steps with these
    overrides."""

    def train(*overrides):
        directory = tmp_path_factory.mktemp("other")
        config = write_config(directory / "mine.py", data_dir=data_dir, num_steps=10)
        argv = ["--config", str(config), "--workdir", str(directory / "run"), *overrides]
        assert command.run(find_main("train"), argv) == 0
        return directory / "run"

    return train


@pytest.fixture(scope="session")
def trained_by_class(shipped):
    """A class-conditional run, some of whose labels are dropped."""
    return shipped("dit_by_class")


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run, to train or sample in."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.fixture
def config_file(tmp_path, data_dir):
    """config_file(num_steps=10) -> path of the config the run was trained with."""
    return lambda num_steps=10: write_config(
        tmp_path / "mine.py", data_dir=data_dir, num_steps=num_steps
    )
