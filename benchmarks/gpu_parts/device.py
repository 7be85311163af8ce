"""What the machine is, and how fast its own matrix product is."""

import importlib.metadata
import os
import platform
import subprocess

import jax
from measuring import PEAK_BFLOAT16, measured_peak

from gpu_parts.plan import Plan, Save

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")
DRIVER = "driver_version,power.limit,clocks.max.sm,memory.total"  # names of nvidia-smi


def measure(plan: Plan, save: Save) -> None:
    device = jax.local_devices()[0]
    record = {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "compute_capability": getattr(device, "compute_capability", None),
        "platform": device.client.platform_version,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "driver": _driver(),
        "processor_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "published_flop_per_second": PEAK_BFLOAT16.get(device.device_kind),
    }
    save(record)
    size = 256 if plan.small else None
    record["matmul_flop_per_second"] = {}
    for dtype in ("bfloat16", "float32"):
        record["matmul_flop_per_second"][dtype] = measured_peak(dtype, size=size)
        save(record)


def _driver() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={DRIVER}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = said.stdout.splitlines()[0].split(", ")
    return dict(zip(DRIVER.split(","), values, strict=False))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
