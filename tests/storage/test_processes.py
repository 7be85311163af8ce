"""Two processes that train and sample in the same folder of a bucket."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.monitoring.records import read

ROOT = pathlib.Path(__file__).parents[2]


def _together(program, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joint = [
        "--distributed",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        "--connect_timeout=600",
    ]
    command = [sys.executable, program, *map(str, arguments), *joint]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    processes = [
        subprocess.Popen(
            [*command, f"--process_id={i}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


@pytest.mark.slow
def test_two_processes_write_one_run_that_one_process_resumes(call, config_file, folder, tmp_path):
    common = ["--config", config_file, "--config.optimizer.clip_scope=average"]
    workdir = folder / "run"
    _together("train.py", *common, "--workdir", workdir, "--config.train.num_steps=4")
    assert saved_steps(workdir) == [2, 4]
    assert call("train", *common, "--workdir", workdir) == 0
    assert call("train", *common, "--workdir", tmp_path) == 0
    there, here = read(workdir), read(tmp_path)
    assert (
        [record["step"] for record in there]
        == [record["step"] for record in here]
        == list(range(1, 7))
    )
    # Two devices add up the gradient in another order than one.
    np.testing.assert_allclose([r["loss"] for r in there], [r["loss"] for r in here], rtol=1e-5)

    sampling = ["--ckpt", workdir, "--num_samples", 8, "--batch_size", 4, "--steps", 3]
    _together("sample.py", *sampling, "--out", folder / "both")
    assert call("sample", *sampling, "--out", folder / "one") == 0
    np.testing.assert_array_equal(read_shards(folder / "both"), read_shards(folder / "one"))
