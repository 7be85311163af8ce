"""Runs cases of the fuzzer, their numbers from standard input, and prints a line of JSON for each.

It lives as long as none of them hangs or blows up: JAX is imported once. `driver.py` starts it and
watches it.
"""

import faulthandler
import gc
import io
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings

import jax

from . import cases
from . import world as worlds

FORGET_AFTER = 20  # cases: every compiled program holds memory maps, and a process may have so many
LONGEST = 5000  # characters of a sentence


class Captured:
    """Standard output and error of all that runs in this process, also of threads and C++."""

    def __enter__(self):
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = os.dup(1), os.dup(2)
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        for number, file in zip((1, 2), self._files, strict=True):
            os.dup2(file.fileno(), number)
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(os.dup(number), "wb", 0), "utf-8", write_through=True)
            for number in (1, 2)
        )
        return self

    def __exit__(self, *error):
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = self._streams
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
            file.close()
        self.out, self.err = texts


def run(world: pathlib.Path, number: int) -> dict:
    """Runs a case; returns what it was and, under "wrong", what must not be."""
    here = pathlib.Path(tempfile.mkdtemp(prefix="case"))
    before = pathlib.Path.cwd()
    settings = {
        name: getattr(jax.config, name) for name in ("jax_platforms", "jax_compilation_cache_dir")
    }
    began = time.monotonic()
    try:
        case = cases.make(number, world, here)
        os.chdir(here)
        wrong, code, out, err = [], None, "", ""
        with Captured() as captured:
            try:
                code = worlds.invoke(case.command, case.argv)
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                wrong.append(traceback.format_exc())
        out, err = captured.out, captured.err
        wrong += faults(code, out, err) if not wrong else []
        if not wrong and code == 0 and case.same_result:
            expected = cases.expected(case.command, world)
            found = worlds.made(case.command, here)
            if found != expected and "warning: " not in err:
                names = sorted(
                    name for name in found | expected if found.get(name) != expected.get(name)
                )
                wrong.append(f"another result, and no word of it: {names}")
        return {
            "number": number,
            "command": case.command,
            "argv": case.argv,
            "case": case.said,
            "code": code,
            "out": out[-2000:],
            "err": err[-4000:],
            "wrong": wrong,
            "seconds": round(time.monotonic() - began, 2),
        }
    finally:
        os.chdir(before)
        for name, value in settings.items():
            jax.config.update(name, value)
        shutil.rmtree(here, ignore_errors=True)


def faults(code, out, err):
    """What is wrong with an exit code and what was printed, as a list of texts."""
    wrong = []
    if code not in (0, 1, 2):
        wrong.append(f"exit code {code}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if code != 0 and (len(errors) != 1 or not err.endswith(f"{errors[0]}\n")):
        wrong.append("no single sentence at the end")
    if code == 0 and errors:
        wrong.append("a sentence of an error, and exit code 0")
    if "Traceback" in err + out:
        wrong.append("a traceback is printed")
    if any(len(line) > LONGEST for line in errors):
        wrong.append("a sentence without end")
    hidden = [c for c in out + err if not c.isprintable() and c != "\n"]
    if hidden:
        wrong.append(f"prints {hidden[0]!r} as it is")
    return wrong


def main():
    world = pathlib.Path(sys.argv[1])
    # what a hanging case is doing
    faulthandler.register(signal.SIGUSR1, os.fdopen(os.dup(2), "w"), all_threads=True)
    warnings.simplefilter("error")
    if not world.exists():
        _build(world)
    # What the program prints by itself must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(world, int(line))), file=answers, flush=True)
        _forget(int(line))


def _build(world):
    half = world.with_name(f"{world.name}-{os.getpid()}")
    half.mkdir(parents=True)
    failed = ""
    with Captured() as captured:
        try:
            worlds.build(half)
        except Exception:
            failed = traceback.format_exc()
    if failed:
        raise SystemExit(captured.err + failed)
    half.rename(world)


def _forget(number):
    if number % FORGET_AFTER == 0:
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main()
