"""Memory and time of reading files of weights, 113 million parameters. Goal: peak < 1.3 x the file.

    python benchmarks/read_checkpoints.py [--only FORMAT]

A file of each format, 0.45 GB in float32, is written to a temporary place; those of PyTorch only
where it is installed. A process of its own then opens each and copies all tensors. The peak is the
largest resident memory of the process, that of files mapped into memory included, less what it was
before reading.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from load_stable_diffusion import peak

GOAL = 1.3
SHAPE, COUNT = (512, 512, 3, 3), 48  # of a convolution; how many there are


def draw() -> dict[str, np.ndarray]:
    """Return tensors by name."""
    rng = np.random.default_rng(0)
    return {f"conv_{i}": rng.standard_normal(SHAPE, np.float32) for i in range(COUNT)}


def write_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write them in this format."""
    from safetensors.numpy import save_file

    save_file(tensors, path)


def write_npz(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write them in this format."""
    with path.open("wb") as file:
        np.savez(file, **tensors)


def write_npz_compressed(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write them in this format."""
    with path.open("wb") as file:
        np.savez_compressed(file, **tensors)


def write_msgpack(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write them in this format."""
    import flax.serialization

    path.write_bytes(flax.serialization.msgpack_serialize(tensors))


def write_torch(path: pathlib.Path, tensors: dict[str, np.ndarray], *, zipped: bool = True) -> None:
    """Write them in this format."""
    import torch

    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save({"model": state, "step": 7}, path, _use_new_zipfile_serialization=zipped)


def write_torch_legacy(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write them in this format."""
    write_torch(path, tensors, zipped=False)


FORMATS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "npz_compressed": write_npz_compressed,
    "msgpack": write_msgpack,
    "torch": write_torch,
    "torch_legacy": write_torch_legacy,
}


def read(path: pathlib.Path) -> dict:
    """Read a file in this process; return its memory and time."""
    from ddpm_jax.interop.containers import open_container

    before, start = peak(), time.perf_counter()
    (group,) = open_container(path).groups.values()
    opened = time.perf_counter() - start
    tensors = {name: np.array(group[name]) for name in group}
    return {
        "file_gb": round(path.stat().st_size / 1e9, 2),
        "parameters": sum(value.size for value in tensors.values()),
        "peak_of_file": round((peak() - before) / path.stat().st_size, 2),
        "seconds_to_open": round(opened, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FORMATS)
    parser.add_argument("--read", type=pathlib.Path, help="used by itself")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    tensors = draw()
    for kind in [options.only] if options.only else FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "weights"
            try:
                FORMATS[kind](path, tensors)
            except ModuleNotFoundError as error:
                print(f"{kind}: not written, {error}", flush=True)
                continue
            command = [sys.executable, __file__, "--read", str(path)]
            result = json.loads(subprocess.check_output(command, text=True))
            met = "met" if result["peak_of_file"] < GOAL else "missed"
            print(f"{kind}: {result}: goal {GOAL} {met}", flush=True)


if __name__ == "__main__":
    main()
