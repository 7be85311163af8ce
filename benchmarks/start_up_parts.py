"""Where the seconds of a command's start go; run by `start_up.py`, in a process of its own.

    python benchmarks/start_up_parts.py PARTS.json DONE sample --ckpt runs/digits --steps 50

runs `ddpm-jax sample ...` until it ends, or until the file DONE is there ("-" for none), and writes
PARTS.json: seconds by the clock of each part, the processor's time and the programs compiled.
"""

import functools
import importlib
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ddpm_jax.distributed import interrupt

START = time.perf_counter()
SPANS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",  # or reading what was compiled
}


class Parts:
    """What was measured of this process so far."""

    def __init__(self) -> None:
        self.seconds = {}
        self.programs = 0
        self._spans = {name: [] for name in SPANS.values()}
        self._mark = START

    def end_of(self, name: str) -> None:
        """The part `name` ends now; it began where the one before ended."""
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def listen(self) -> None:
        import jax

        def on_span(event: str, start: float, end: float, **_: Any) -> None:
            if event in SPANS:
                self._spans[SPANS[event]].append((start, end))
                self.programs += SPANS[event] == "compiling"

        jax.monitoring.register_event_time_span_listener(on_span)

    def time_reading(self) -> None:
        """Counts the reading of a checkpoint as a part."""
        from ddpm_jax.checkpoints import arrays, reader

        def timed(read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return read(*arguments, **options)
            finally:
                spent = self.seconds.get("checkpoint", 0.0) + time.perf_counter() - start
                self.seconds["checkpoint"] = spent

        arrays.read = functools.partial(timed, arrays.read)
        reader.restore_state = functools.partial(timed, reader.restore_state)

    def write(self, path: str) -> None:
        whole = time.perf_counter() - START
        known = self.seconds | {name: _covered(spans) for name, spans in self._spans.items()}
        known["the rest"] = whole - sum(known.values())
        times = os.times()
        result = {
            "seconds": known,
            "all": whole,
            "processor": times.user + times.system,
            "programs": self.programs,
        }
        pathlib.Path(path).write_text(json.dumps(result))


def _covered(spans: list[tuple[float, float]]) -> float:
    """The seconds that some span covers: the trace of a program has those of functions in it."""
    covered, end = 0.0, 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


def main() -> None:
    out, done, name, *arguments = sys.argv[1:]
    parts = Parts()
    interrupt.own_process()
    importlib.import_module("jax")
    parts.end_of("import of JAX")
    command = importlib.import_module("ddpm_jax.cli.command")
    module = importlib.import_module(f"ddpm_jax.cli.{name}")
    parts.end_of("other imports")
    parts.listen()
    parts.time_reading()
    if done != "-":
        threading.Thread(target=_end_when, args=(done, parts, out), daemon=True).start()
    code = command.run(getattr(module, "command", module.main), arguments)
    parts.write(out)
    sys.exit(code)


def _end_when(done: str, parts: Parts, out: str) -> None:
    while not os.path.exists(done):
        time.sleep(0.005)
    parts.write(out)
    os._exit(0)


if __name__ == "__main__":
    main()
