"""The real program, killed again and again while it trains and while it saves, ends where an
undisturbed run ends."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import CHECKPOINTS, find_step
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import load_config
from ddpm_jax.experiments.trainer import build_training
from ddpm_jax.monitoring.records import RECORDS, read
from ddpm_jax.training.state import create

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("killed_config.py")
STEPS = 60
PATIENCE = 300  # seconds until a test gives a process up


class Program:
    """`python train.py` in a directory, started and stopped at will."""

    def __init__(self, workdir, data_dir, *arguments):
        self.workdir = workdir
        self._command = [
            sys.executable,
            "-u",
            "train.py",
            f"--config={CONFIG}",
            f"--workdir={workdir}",
        ]
        self._command += [f"--config.data.data_dir={data_dir}", *arguments]
        # So small that everything it compiles is worth keeping for the next start.
        self._environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self):
        """Waits for the end; returns (exit code, what was printed)."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output

    def run(self):
        self.start()
        return self.finish()

    def until(self, condition):
        """Waits until condition() holds or the program ends; returns whether it held."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, "the program hangs"
            time.sleep(0.0005)
        return False

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        return self.finish()

    def trains(self):
        """Whether this start has recorded a step beyond those that were there before."""
        return self._size() > self._size_before

    def mark(self):
        self._size_before = self._size()

    def _size(self):
        path = self.workdir / RECORDS
        return path.stat().st_size if path.exists() else 0

    def saving(self):
        """Whether a checkpoint is half written at this moment."""
        folder = self.workdir / CHECKPOINTS
        return folder.exists() and any(not path.name.isdigit() for path in folder.iterdir())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, output = Program(workdir, data_dir).run()
    assert code == 0, output
    return workdir


def _state(workdir):
    model = build(load_config(CONFIG))
    training = build_training(model)
    template = jax.eval_shape(
        lambda params: create(params, training.optimizer, training.objective),
        model.params_shapes(),
    )
    return Checkpointer(workdir, keep_last=2).restore(template)


def _assert_same_end(workdir, undisturbed):
    state, position = _state(workdir)
    expected, expected_position = _state(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert position == expected_position
    assert int(state.step) == STEPS
    records, expected_records = read(workdir), read(undisturbed)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [record[name] for record in records] == [record[name] for record in expected_records]


def _kill_until_done(program, rng, kills):
    """Kills the program `kills` times, in turn at random and while it saves, then lets it finish.

    Returns how many kills left a checkpoint half written.
    """
    half_written = 0
    for n in range(kills):
        program.mark()
        program.start()
        if n % 2:
            reached = program.until(program.trains) and program.until(program.saving)
            time.sleep(rng.choice([0, 0.005, 0.02]))
        else:
            reached = program.until(program.trains)
            time.sleep(rng.uniform(0, 0.4))
        if not reached:
            break
        program.kill()
        half_written += program.saving()
    code, output = program.run()
    assert code == 0, output
    return half_written


def _check_killed_run(tmp_path, data_dir, undisturbed, *, seed, kills):
    program = Program(tmp_path / "run", data_dir)
    assert _kill_until_done(program, random.Random(seed), kills) > 0, "no kill fell into a save"
    _assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, data_dir, undisturbed):
    _check_killed_run(tmp_path, data_dir, undisturbed, seed=0, kills=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_run_killed_very_often_ends_as_if_undisturbed(tmp_path, data_dir, undisturbed, seed):
    _check_killed_run(tmp_path, data_dir, undisturbed, seed=seed, kills=6)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_even_amid_a_save_and_the_run_goes_on(
    tmp_path, data_dir, undisturbed
):
    program, amid_a_save = Program(tmp_path / "run", data_dir), 0
    for _ in range(4):
        program.mark()
        program.start()
        if not (program.until(program.trains) and program.until(program.saving)):
            break
        start = time.monotonic()
        while program.process.poll() is None:  # two signals at once are one to the kernel
            program.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        left_after = time.monotonic() - start
        ended, output = program.finish()
        assert ended == 130, output
        assert "interrupted" in output
        assert left_after < 10, "of a machine under load; to save and draw takes longer there"
        assert "Traceback" not in output
        assert "Fatal" not in output
        amid_a_save += program.saving()
    assert amid_a_save, "every save was quicker than the signals"
    ended, output = program.run()
    assert ended == 0, output
    _assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_signal_saves_says_how_to_resume_and_the_run_goes_on(tmp_path, data_dir, undisturbed):
    workdir = tmp_path / "run"
    program = Program(workdir, data_dir)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        program.mark()
        program.start()
        assert program.until(program.trains)
        program.process.send_signal(number)
        ended, output = program.finish()
        step = find_step(workdir)
        assert ended == code, output
        assert f"saved step {step} in {workdir}. To resume, give the same command again." in output
        assert "Traceback" not in output
        assert step < STEPS
        assert read(workdir)[-1]["step"] == step
    ended, output = program.run()
    assert ended == 0, output
    assert f"resuming at step {step} of {STEPS}" in output
    _assert_same_end(workdir, undisturbed)
