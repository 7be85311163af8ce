"""The real evaluate.py, killed with SIGKILL once a batch is on disk, goes on and ends with the same
number."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 300  # seconds until a process is given up
NUM_IMAGES = 40


def start(trained, out, metric):
    argv = [
        "--metric",
        metric,
        "--num_images",
        NUM_IMAGES,
        "--draws",
        2,
        "--batch_size",
        1,
        "--out",
        out,
    ]
    return subprocess.Popen(
        [sys.executable, "-u", "evaluate.py", "--ckpt", *map(str, [trained, *argv])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(path, array_name):
    """How many images are in a tally; none before there is one."""
    if not path:
        return 0
    with np.load(path[0]) as arrays:
        return len(arrays[array_name])


def record(out, metric):
    return json.loads(next(out.glob(f"{metric}_*.json")).read_text())


@pytest.mark.parametrize(
    ("metric", "tally", "field"),
    [("bpd", "bound", "prior"), ("bpd_ode", "bits_ode", "draws")],
)
@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_number_of_an_undisturbed_one(
    trained, tmp_path, metric, tally, field
):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process, deadline = start(trained, killed, metric), time.monotonic() + PATIENCE
    while not list(killed.glob(f"{tally}_*.npz")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no batch was ever written"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    # in the middle, and the file is whole
    assert 0 < done(list(killed.glob(f"{tally}_*.npz")), field) < NUM_IMAGES
    assert not list(killed.glob(f"{metric}_*.json"))
    for out in (killed, undisturbed):
        process = start(trained, out, metric)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
    assert record(killed, metric) == record(undisturbed, metric)
    assert done(list(killed.glob(f"{tally}_*.npz")), field) == NUM_IMAGES
