"""Several real processes on this machine, connected by loopback: they train one run, save it, and end together."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ddpm_jax.training import metrics
from ddpm_jax.training.checkpoint_reading import find_step

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "training" / "killed_config.py"
PATIENCE = 600  # seconds until a test gives a process up
LOST_WITHIN = 90  # seconds in which a process must have noticed that another is gone: `hosts.LOST_SECONDS` and a margin
# As the config is, but for what depends on the number of devices by design.
SAME_EVERYWHERE = ["--config.optimizer.clip_scope=average", "--config.diffusion.timestep_sampling=uniform"]


class Command:
    """A command in one process, or with --distributed in several, each with virtual devices."""

    def __init__(self, program, *arguments, processes=1, devices=1, own=()):
        with socket.socket() as probe:  # a port that is free now
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        self.processes = []
        for p in range(processes):
            together = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
            together += [f"--process_id={p}", f"--connect_timeout={PATIENCE}"]
            command = [sys.executable, "-u", program, *map(str, arguments), *(together if processes > 1 else [])]
            self.processes.append(
                subprocess.Popen(
                    [*command, *(own[p] if own else [])],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def finish(self):
        """Waits for all; returns the exit codes and what was printed."""
        try:
            outputs = [process.communicate(timeout=PATIENCE)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], outputs

    def succeed(self):
        codes, outputs = self.finish()
        assert codes == [0] * len(codes), "\n".join(outputs)
        return outputs

    def until(self, condition):
        """Waits until condition() holds, all processes being alive."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            alive = all(process.poll() is None for process in self.processes)
            assert alive, self.finish()
            assert time.monotonic() < deadline, "the processes hang"
            time.sleep(0.01)


def _train(workdir, data_dir, num_steps, *more, **layout):
    fields = [f"--config.data.data_dir={data_dir}", f"--config.train.num_steps={num_steps}", *SAME_EVERYWHERE]
    return Command("train.py", f"--config={CONFIG}", f"--workdir={workdir}", *fields, *more, **layout)


def _recorded(workdir):
    """The last step with a record of its loss."""
    return max((record["step"] for record in metrics.read(workdir) if "loss" in record), default=0)


def _losses(workdir):
    """The loss of every step, none missing and none twice."""
    records = [record for record in metrics.read(workdir) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_half_given_flags_are_refused(refused, name):
    ckpt = [] if name == "train" else ["--ckpt", "anywhere"]
    refused(name, *ckpt, "--num_processes", 2, says=["--num_processes is for several processes: give --distributed"])
    refused(name, *ckpt, "--connect_timeout", 2, says=["--connect_timeout is for several processes"])
    some = [*ckpt, "--distributed", "--coordinator", "host:1234"]
    refused(name, *some, says=["--num_processes and --process_id are missing"])
    refused(name, *some, "--process_id", 0, says=["--num_processes is missing: give all of"])
    refused(name, *some, "--process_id", 2, "--num_processes", 2, says=["--process_id is 2: of 2 processes", "0 to 1"])
    refused(name, "--num_processes", 0, says=["--num_processes=0", "whole number of at least 1"])


def test_a_picture_of_its_own_is_drawn_by_one_process(refused):
    refused("sample", "--ckpt", "anywhere", "--distributed", "--shared_latents", says=["leave out --distributed"])


@pytest.mark.slow
def test_a_signal_to_one_process_saves_at_a_common_step_and_ends_both_with_success(tmp_path, data_dir):
    workdir = tmp_path / "run"
    run = _train(workdir, data_dir, 100_000, processes=2, devices=2)
    run.until(lambda: _recorded(workdir) >= 3)
    run.processes[1].send_signal(signal.SIGTERM)
    first, second = run.succeed()
    step = find_step(workdir)
    assert f"saved step {step} in {workdir}. To resume, give the same command again." in first
    assert step == _recorded(workdir) >= 3
    assert "4 cpu devices of 2 processes" in first
    # Of the second there is its own answer to the signal, and what Gloo prints.
    said = [line for line in second.splitlines() if line and not line.startswith("[Gloo]")]
    assert len(said) == 1
    assert said[0].startswith("SIGTERM: saving")


@pytest.mark.slow
def test_a_run_moves_between_devices_and_processes_and_keeps_its_curve(tmp_path, data_dir):
    """1 device, 4 devices, 2 processes of 2 devices stopped and killed, 1 device; beside it a run that never moves."""
    moving, still = tmp_path / "moving", tmp_path / "still"
    _train(moving, data_dir, 6).succeed()
    _train(moving, data_dir, 12, devices=4).succeed()

    stopped = _train(moving, data_dir, 100_000, processes=2, devices=2)
    stopped.until(lambda: _recorded(moving) >= 16)
    stopped.processes[0].send_signal(signal.SIGTERM)
    stopped.succeed()
    after_stop = find_step(moving)

    killed = _train(moving, data_dir, 100_000, processes=2, devices=2)
    killed.until(lambda: find_step(moving) > after_stop)
    killed.processes[1].kill()
    start = time.monotonic()
    (code, killed_code), (output, _) = killed.finish()
    assert time.monotonic() - start < LOST_WITHIN
    assert (code, killed_code) == (1, -signal.SIGKILL)
    assert "error: Another process of this run was lost or could not be reached" in output, output
    after_kill = find_step(moving)
    assert after_kill > after_stop

    last = _recorded(moving) + 4
    (resumed,) = _train(moving, data_dir, last).succeed()
    assert f"resuming at step {after_kill} of {last}" in resumed
    _train(still, data_dir, last).succeed()
    ours, expected = _losses(moving), _losses(still)
    assert len(ours) == len(expected) == last
    # Float32 sums in another order, over some tens of updates. Other images or draws would change it by tenths.
    np.testing.assert_allclose(ours, expected, rtol=2e-3)
    assert np.std(expected) > 0.05


@pytest.mark.slow
def test_losing_the_coordinator_ends_the_others_with_a_sentence(tmp_path, data_dir):
    run = _train(tmp_path, data_dir, 100_000, processes=2)
    run.until(lambda: _recorded(tmp_path) >= 2)
    run.processes[0].kill()
    start = time.monotonic()
    (_, code), (_, output) = run.finish()
    assert time.monotonic() - start < LOST_WITHIN
    assert code == 1
    assert "start all processes with the same command again to resume" in output


@pytest.mark.slow
def test_processes_started_differently_are_refused_by_name(tmp_path, data_dir):
    own = [["--config.train.batch_size=8"], ["--config.train.batch_size=16"]]
    codes, outputs = _train(tmp_path / "run", data_dir, 10, processes=2, own=own).finish()
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "Process 0 and process 1 were not started alike (train.batch_size is 8 there and 16 here)" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_told_in_a_sentence():
    together = ["--distributed", "--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"]
    (code,), (output,) = Command("train.py", *together, "--connect_timeout=2").finish()
    assert code == 1
    assert "error: This process waited 2 s for the coordinator at 127.0.0.1:9: start all processes" in output


@pytest.mark.slow
def test_where_nothing_tells_the_processes_apart_the_flags_are_asked_for():
    (code,), (output,) = Command("train.py", "--distributed").finish()
    assert code == 2
    assert "error: JAX finds no TPU slice, Slurm or Open MPI here" in output
    assert "give --coordinator HOST:PORT, --num_processes N and --process_id I" in output


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("trained")
    _train(workdir, data_dir, 8).succeed()
    return workdir


LAYOUTS = {"one": {}, "two": {"processes": 2, "devices": 2}}


@pytest.mark.slow
def test_two_processes_share_the_images_that_are_sampled(tmp_path, trained):
    for name, layout in LAYOUTS.items():
        arguments = ["--ckpt", trained, "--num_samples", 1100, "--batch_size", 100, "--steps", 2]
        outputs = Command("sample.py", *arguments, "--out", tmp_path / name, **layout).succeed()
        assert "1100 images" in outputs[0]
        assert not any("images" in output for output in outputs[1:])
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in LAYOUTS]
    assert (
        names[0]
        == names[1]
        == {"grid.png", "manifest.json", "samples-00000-of-00002.npz", "samples-00001-of-00002.npz"}
    )
    for path in sorted((tmp_path / "one").glob("*.npz")):
        ours, expected = np.load(tmp_path / "two" / path.name), np.load(path)
        np.testing.assert_array_equal(ours["index"], expected["index"])
        # A batch of another size sums in another order: a grey level at most, and seldom.
        off = np.abs(np.int32(ours["images"]) - expected["images"])
        assert off.max() <= 1
        assert np.mean(off) < 1e-2


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path, trained):
    records = {}
    for name, layout in LAYOUTS.items():
        arguments = ["--ckpt", trained, "--metric", "bpd,frechet_pixels", "--num_images", 21, "--num_samples", 30]
        arguments += ["--batch_size", 8, "--steps", 2, "--out", tmp_path / name]
        outputs = Command("evaluate.py", *arguments, **layout).succeed()
        assert not any("bits/dim" in output for output in outputs[1:])
        records[name] = {
            re.match(r"[a-z]+", path.name)[0]: json.loads(path.read_text()) for path in (tmp_path / name).glob("*.json")
        }
        assert not list((tmp_path / name).glob("*_images*"))  # the parts have been merged
    one, two = records["one"], records["two"]
    assert set(one) == set(two) == {"bpd", "frechet"}
    for part in ("mean", "standard_error"):
        np.testing.assert_allclose(two["bpd"]["bits_per_dim"][part], one["bpd"]["bits_per_dim"][part], rtol=1e-5)
    np.testing.assert_allclose(two["bpd"]["per_timestep"]["bits"], one["bpd"]["per_timestep"]["bits"], rtol=1e-4)
    # Images that differ by a grey level here and there.
    np.testing.assert_allclose(two["frechet"]["frechet_samples"], one["frechet"]["frechet_samples"], rtol=1e-3)
