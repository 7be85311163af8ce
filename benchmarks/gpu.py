"""One GPU in eight minutes: training steps against PyTorch, attention, sampling, resumption, a run.

    python benchmarks/gpu.py [--minutes 8] [--data DIR] [--out DIR]     one GPU, no network
    python benchmarks/gpu.py --small                                    toy sizes, on a CPU: a test

The parts, one process each, in this order:
  device        what it is, and the rate of its own matrix product
  unet          training steps of the CIFAR-10 network in bfloat16, over batch sizes
  unet_pytorch  the same in PyTorch, eager and by torch.compile, of the same weights and precision,
                after both have returned the same output; diffusers' network, or a port of it
  dit           as unet, of DiT-B/2 on latents of 32x32x4
  dit_pytorch   likewise
  attention     cuDNN's against products of matrices, at the shapes of both networks
  sampling      images a second of the CIFAR-10 network
  resume        a run that is killed and resumed against one that is not, byte for byte
  training      CIFAR-10 in the time that is left, bits/dim of held-out images, a grid of samples

A time is the median of several windows that each wait for the device once; a ratio above 1 means
that ours is faster. The share of the matrix product is of FLOP as JAX counts them in the network
and its gradient as they are written. A part that does not fit into the time is skipped, and says
so. DIR/gpu.json is written after every part, beside the records and logs of each; the table of all
is printed at the end. Exit code 1 where a part failed, or was not come to.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from gpu_parts.budget import MINUTES, PARTS, Part, share
from gpu_parts.plan import Record, read_json, record_path, write_json
from gpu_parts.table import markdown, rows
from train_run import process_environment

BENCHMARKS = pathlib.Path(__file__).parent
GRACE = 3  # seconds that a part may take beyond its deadline


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--minutes", type=float, default=MINUTES, help="for everything (default: %(default)s)"
    )
    made.add_argument(
        "--data",
        metavar="DIR",
        help="CIFAR-10: a folder of pictures, or TFDS's data_dir with cifar10",
    )
    made.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help="of the results (default: runs/gpu_DATE_TIME)",
    )
    made.add_argument(
        "--peer",
        choices=["diffusers", "port"],
        help="PyTorch's networks (default: what is installed)",
    )
    made.add_argument("--parts", metavar="NAME,...", help="only these (default: all)")
    made.add_argument("--small", action="store_true", help="toy sizes")
    flags = made.parse_args(argv)
    names = [part.name for part in PARTS]
    wanted = flags.parts.split(",") if flags.parts else names
    if unknown := [name for name in wanted if name not in names]:
        made.error(f"there is no part {unknown[0]}: choose among {', '.join(names)}")
    out = flags.out or pathlib.Path("runs") / time.strftime("gpu_%Y%m%d_%H%M%S")
    if (out / "gpu.json").exists():
        made.error(f"{out} has the results of another run: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        _measure([part for part in PARTS if part.name in wanted], flags, out, pathlib.Path(folder))
    result = read_json(out / "gpu.json") or {"parts": {}}
    print(markdown(rows(result["parts"])))
    print(f"\n{result.get('seconds', 0):.0f} s; {out / 'gpu.json'}")
    failed = any("failed" in record for record in result["parts"].values())
    return int(failed or len(result["parts"]) < len(wanted))


def _measure(
    parts: list[Part], flags: argparse.Namespace, out: pathlib.Path, folder: pathlib.Path
) -> None:
    """Runs the parts one after the other, and writes what is known after each."""
    start = time.time()
    end = start + 60 * flags.minutes
    result: dict[str, Any] = {"small": flags.small, "minutes": flags.minutes, "parts": {}}
    for i, part in enumerate(parts):
        seconds = share(
            part, parts[i + 1 :], end - time.time(), minutes=flags.minutes, small=flags.small
        )
        why = f"It takes {part.least:.0f} s at least, and less time than that was left."
        record: Record = {"skipped": why}
        if seconds:
            print(f"{part.name}: at most {seconds:.0f} s ...", file=sys.stderr, flush=True)
            record = _run(part, flags, out, folder, time.time() + seconds)
        result["parts"][part.name] = record
        result["seconds"] = time.time() - start
        write_json(out / "gpu.json", result)
        if part.name == "device" and record.get("backend") == "cpu" and not flags.small:
            record["failed"] = (
                "JAX has no GPU here: install jax[cuda13], or give --small for toy sizes on a CPU."
            )
            write_json(out / "gpu.json", result)
            return


def _run(
    part: Part, flags: argparse.Namespace, out: pathlib.Path, folder: pathlib.Path, deadline: float
) -> Record:
    """Runs one part in a process of its own; at its deadline ends it and all that it started."""
    start = time.time()
    command = [sys.executable, "-m", "gpu_parts", part.name, "--folder", str(folder)]
    command += ["--out", str(out.absolute()), "--deadline", str(deadline)]
    command += ["--peer", flags.peer or default_peer()]
    command += ["--data", str(pathlib.Path(flags.data).absolute())] if flags.data else []
    command += ["--small"] if flags.small else []
    with open(out / f"{part.name}.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            env=process_environment(folder / "compiled"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stopped = {}
        try:
            process.wait(max(0.0, deadline + GRACE - time.time()))
        except subprocess.TimeoutExpired:
            stopped = {
                "stopped": "It was ended when its time was over; what it had measured is kept."
            }
        finally:
            with contextlib.suppress(ProcessLookupError):  # all that it started is of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record = (
        (read_json(record_path(part.name, out)) or {}) | stopped | {"seconds": time.time() - start}
    )
    if process.returncode and not stopped and "failed" not in record:
        record["failed"] = f"It ended with {process.returncode}: see {part.name}.log."
    return record


def default_peer() -> str:
    """Returns "diffusers" where it is installed, else "port"."""
    return "diffusers" if importlib.util.find_spec("diffusers") else "port"


if __name__ == "__main__":
    sys.exit(main())
