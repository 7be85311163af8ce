"""Several real processes on this machine, connected by loopback, each with virtual devices; and a
tiny run for them."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ddpm_jax.monitoring.records import read

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "training" / "killed_config.py"
PATIENCE = 600  # seconds until a test gives a process up
# As the config is, but for what depends on the number of devices by design.
SAME_EVERYWHERE = [
    "--config.optimizer.clip_scope=average",
    "--config.diffusion.timestep_sampling=uniform",
]


def _free_port(among=(0,)):
    """A port of this host that nobody listens at: the first free one of these, any for 0."""
    for port in among:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise AssertionError("no port is free")


class Command:
    """A command in one process, or in several that find one another by flags or as their
    environments say."""

    def __init__(self, program, *arguments, processes=1, devices=1, own=(), environments=()):
        """`own`: arguments of each process; `environments`: variables of each, in place of flags
        but --distributed."""
        together = [[] for _ in range(processes)]
        if environments:
            together = [["--distributed", f"--connect_timeout={PATIENCE}"] for _ in environments]
        elif processes > 1:
            joint = [
                "--distributed",
                f"--coordinator=127.0.0.1:{_free_port()}",
                f"--num_processes={processes}",
            ]
            together = [
                [*joint, f"--process_id={p}", f"--connect_timeout={PATIENCE}"]
                for p in range(processes)
            ]
        common = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-u",
                    program,
                    *map(str, arguments),
                    *flags,
                    *(own[p] if own else []),
                ],
                cwd=ROOT,
                env=common | (environments[p] if environments else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for p, flags in enumerate(together)
        ]

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


@pytest.fixture(scope="session")
def free_port():
    return _free_port


@pytest.fixture(scope="session")
def command():
    """command(program, *arguments, processes=1, devices=1) starts it: see `Command`."""
    return Command


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """train(workdir, num_steps, *more, **layout) starts train.py on the digits."""
    data_dir = tmp_path_factory.mktemp("data")

    def start(workdir, num_steps, *more, **layout):
        fields = [
            f"--config.data.data_dir={data_dir}",
            f"--config.train.num_steps={num_steps}",
            *SAME_EVERYWHERE,
        ]
        return Command(
            "train.py", f"--config={CONFIG}", f"--workdir={workdir}", *fields, *more, **layout
        )

    return start


def _losses(workdir):
    records = [record for record in read(workdir) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])


@pytest.fixture(scope="session")
def losses():
    """losses(workdir): the loss of every step, none missing and none twice."""
    return _losses


@pytest.fixture(scope="session")
def last_recorded():
    """last_recorded(workdir): the last step with a record of its loss."""
    return lambda workdir: max(
        (record["step"] for record in read(workdir) if "loss" in record), default=0
    )
