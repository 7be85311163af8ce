"""Wishes to stop: their receivers and results, and the immediate second Ctrl-C."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest

from ddpm_jax.distributed import interrupt
from ddpm_jax.distributed.interrupt import Interrupt, Stopped, Wish

ROOT = pathlib.Path(__file__).parents[2]


def test_where_nobody_listens_there_is_no_wish():
    interrupt.check()
    interrupt.check(together=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("together", [False, True])
def test_a_signal_is_said_at_once_and_stops_at_the_next_check(capfd, number, together):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt("stopping soon") as stop:
        interrupt.check(together=together)
        os.kill(os.getpid(), number)
        assert capfd.readouterr().err == f"\n{number.name}: stopping soon.\n"
        with pytest.raises(Stopped) as stopped:
            interrupt.check(together=together)
        assert stopped.value.wish == stop.received == number
    interrupt.check()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_time_limit_is_a_wish_and_a_signal_counts_for_more(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(interrupt, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    stop = Interrupt("", max_seconds=10)
    now[0] = 55.0
    with stop:  # the time runs from the start of the command
        interrupt.check()
        now[0] = 60.0
        with pytest.raises(Stopped, match=r"^stopped by max_seconds$"):
            interrupt.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == Wish.SIGTERM


def test_the_innermost_interrupt_hears_the_signal():
    with Interrupt("outer") as outer:
        with Interrupt("inner"):
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Stopped):
                interrupt.check()
        assert outer.received is None
        interrupt.check()


PROGRAM = """
import sys, jax
from ddpm_jax.distributed import interrupt
interrupt.own_process()
forever = lambda x: jax.lax.fori_loop(0, 2**31 - 2, lambda i, x: x * 1.0000001 + 1e-9, x)
busy = jax.jit(forever).lower(1.0).compile()
with interrupt.Interrupt("stopping soon"):
    print("busy", flush=True)
    busy(1.0).block_until_ready()
"""


def test_a_command_deep_in_a_program_answers_a_signal_and_leaves_at_the_second():
    """Python runs no handler while the main thread waits for a device."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() + process.stderr.readline() == "\nSIGINT: stopping soon.\n"
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "\ninterrupted\n")
    assert time.monotonic() - start < 5


def test_ctrl_c_amid_an_import_leaves_at_once_without_an_exception():
    """One that arose while jaxlib initialises made it fail in words of its own, or crash."""
    program = """
import time
from ddpm_jax.distributed import interrupt
interrupt.own_process()
with interrupt.leaving():
    print("importing", flush=True)
    try:
        time.sleep(60)
    finally:
        print("an exception")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "\ninterrupted\n")


def test_the_scripts_import_nothing_heavy_before_they_listen():
    """What `train.py` imports before it can be left must take no second."""
    program = (
        "import sys\nfrom ddpm_jax.distributed import interrupt\n"
        "print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False False\n"


def test_ctrl_c_amid_a_callback_of_the_garbage_collector_is_not_lost():
    """Python ignores what a callback of the garbage collector raises, and JAX has one.

    It may run between the imports and the first dispatch.
    """
    program = textwrap.dedent("""
        import gc, signal, sys
        from ddpm_jax.cli import command

        def main(argv):
            gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))
            gc.collect()
            print("went on")

        command.run(main)
    """)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize("finished", [True, False])
def test_a_finished_command_ends_after_its_threads_and_handlers_without_being_torn_down(finished):
    """Freeing what JAX traced and compiled takes as long as importing JAX."""
    program = f"""
import sys
from ddpm_jax.distributed import interrupt
interrupt.own_process()
import atexit, os, threading, time
class Kept:
    def __del__(self, write=os.write):
        write(1, b"torn down\\n")
kept = Kept()
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
atexit.register(print, "handler")
print("done")
sys.exit(interrupt.finished(3) if {finished} else 4)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said = done.stdout.split("\n")[:-1]
    assert said[:3] == ["done", "thread", "handler"]
    assert done.stderr == ""
    assert (done.returncode, said[3:]) == ((3, []) if finished else (4, ["torn down"]))
