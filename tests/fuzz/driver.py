"""Starts workers and watches them: a case that takes too long or too much memory ends with its
process.

    python -m tests.fuzz.driver WORLD 17 300:800

runs case 17 and those from 300 to 799, and prints what fails; the directory WORLD is made if it is
missing.
"""

import contextlib
import itertools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
HANGS = 60  # seconds, on a machine with nothing else to do
STARTS = 600  # seconds in which a worker has made the world
GROWS = 3 << 30  # bytes of resident memory that a case may add


class Worker:
    """A process that runs cases; after one that had to be killed, another."""

    def __init__(self, world: pathlib.Path):
        self._world, self._process = world, None

    def run(self, number: int) -> dict:
        """Returns what the case was and did, with "wrong", a list of what must not be."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        before = self._memory()
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        began, patience = time.monotonic(), HANGS * max(1, os.getloadavg()[0] / os.cpu_count())
        while True:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=0.1)
                if line:
                    return json.loads(line)
                return self._failed(number, f"the process died with {self._process.wait()}")
            if self._memory() - before > GROWS:
                return self._failed(number, f"more than {GROWS >> 30} GiB of memory")
            if time.monotonic() - began > patience:
                self._process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                return self._failed(number, f"no end after {patience:.0f} s")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _start(self):
        self.close()
        self._errors = self._world.with_name(f"{self._world.name}-errors.txt")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", self._world],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ
                | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            )
        self._lines = queue.Queue()
        threading.Thread(
            target=self._read, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        if self._lines.get(timeout=STARTS) != "ready\n":
            raise RuntimeError(f"The worker does not start: {self._errors.read_text()}")

    @staticmethod
    def _read(stream, lines):
        with contextlib.suppress(ValueError):  # closed
            for line in stream:
                lines.put(line)
        lines.put("")

    def _memory(self) -> int:
        with contextlib.suppress(OSError, IndexError):
            pages = pathlib.Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def _failed(self, number, reason):
        self.close()
        return {"number": number, "wrong": [reason], "err": self._errors.read_text()[-4000:]}


def _numbers(text):
    first, _, end = text.partition(":")
    return range(int(first), int(end or int(first) + 1))


def main():
    world, *wanted = sys.argv[1:]
    with contextlib.closing(Worker(pathlib.Path(world))) as worker:
        for number in itertools.chain.from_iterable(map(_numbers, wanted)):
            result = worker.run(number)
            if result["wrong"]:
                print(json.dumps(result, indent=2), flush=True)
            else:
                print(number, result["code"], result["seconds"], flush=True)


if __name__ == "__main__":
    main()
