"""A bucket on this machine, and a tiny run in it."""

import importlib
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

import pytest

from ddpm_jax.cli import command

EMULATOR = pathlib.Path(__file__).with_name("emulator.py")
CONFIG = """def get_config():
    return {{
        "data": {{"name": "digits", "data_dir": {data_dir!r}, "image_size": 8, "channels": 1, "flip": False}},
        "diffusion": {{"num_timesteps": 20}},
        "model": {{"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.0}},
        "optimizer": {{"warmup_steps": 2}},
        "ema": {{"decay": 0.5}},
        "train": {{
            "num_steps": 6, "batch_size": 8, "log_every": 1, "sample_every": 0, "num_samples": 4, "sample_steps": 20,
        }},
        "checkpoint": {{"save_every": 2, "keep_last": 3}},
    }}
"""


@pytest.fixture(scope="session")
def server():
    """The emulator's address, which all clients of a bucket use until the session ends."""
    for package in ("gcp_storage_emulator", "gcsfs"):
        pytest.importorskip(package)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(EMULATOR), str(port)])
    address = f"http://127.0.0.1:{port}"
    variables = {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, and Google's own client in Orbax
        "TENSORSTORE_GCS_HTTP_URL": address,
        "NO_GCE_CHECK": "true",  # nobody looks for the machine's own credentials
    }
    os.environ.update(variables)
    try:
        _wait_for(address, process)
        yield address
    finally:
        for name in variables:
            del os.environ[name]
        process.kill()
        process.wait()


def _wait_for(address, process):
    for _ in range(600):
        assert process.poll() is None, "the emulator has ended"
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the emulator does not answer")


@pytest.fixture(scope="module")
def folder(server):
    """A folder of the bucket that nothing is in."""
    from ddpm_jax.files import as_path

    return as_path(f"gs://bucket/{uuid.uuid4()}")


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    path = folder / "mine.py"
    path.write_text(CONFIG.format(data_dir=str(folder / "tfds")))
    return path


def _call(name, *argv):
    return command.run(
        importlib.import_module(f"ddpm_jax.cli.{name}").main, [str(argument) for argument in argv]
    )


@pytest.fixture(scope="session")
def call():
    """call("sample", "--ckpt", ...) -> exit code of the command, run in this process."""
    return _call


@pytest.fixture
def refused(capfd):
    """refused("train", ..., code=2) -> the one sentence that the command ends with."""

    def refused(name, *argv, code=2):
        capfd.readouterr()
        assert _call(name, *argv) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err

    return refused
