"""What the benchmarks share: what a device can do, what a program asks of it, a table on the
terminal and JSON on disk.

What is measured, and how, stands in each benchmark. FLOP are those that JAX counts in the program
as it is written, before XLA rewrites it: multiplications and additions one each.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[1]

# FLOP/s of dense bfloat16 products with float32 sums, by JAX's name of a device; a TPU v2 or v3
# device is one of a chip's two cores. NVIDIA: the data sheets of A100, H100, H200 and L4 (halved
# where they count with sparsity) and the Ada architecture's white paper. TPU: "System architecture"
# of each version in the Cloud TPU documentation.
PEAK_BFLOAT16 = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class Program(NamedTuple):
    """A compiled program and what it asks for."""

    call: Callable[..., Any]
    flops: float  # of one call; the body of a loop is counted once
    compile_seconds: float
    temporary_bytes: int  # that XLA sets aside on a device besides arguments and results


def compiled(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a jitted or mapped function for these arguments."""
    lowered = function.lower(*arguments)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return Program(
        program,
        lowered.cost_analysis()["flops"],
        seconds,
        program.memory_analysis().temp_size_in_bytes,
    )


def peak_bytes(fallback: int) -> int:
    """The most memory in use on the first device since the process began; `fallback` where it is
    not counted (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", fallback)


def measured_peak(dtype: str, *, size: int | None = None, repeats: int = 7) -> float:
    """FLOP/s of a product of two size x size matrices on one device, the fastest of `repeats` runs.

    A run is 10 products on a GPU, dispatched together. The matrices are random: a GPU multiplies
    constant ones faster, since fewer of its bits change.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, products = size or (1024 if on_cpu else 8192), 1 if on_cpu else 10
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))

    def run():
        jax.block_until_ready([product(a) for _ in range(products)])

    return 2 * size**3 * products / min(seconds(run) for _ in range(repeats))


def achieved(flops: float, taken: float, dtype: str) -> dict[str, float | None]:
    """FLOP/s on each device, and their share of what it can do: as published, and as its own matrix
    product reaches."""
    rate = flops / taken
    published = (
        PEAK_BFLOAT16.get(jax.local_devices()[0].device_kind) if dtype == "bfloat16" else None
    )
    return {
        "flops_per_second": rate,
        "share_of_published_peak": rate / published if published else None,
        "share_of_measured_peak": rate / measured_peak(dtype),
    }


def seconds(task: Callable[[], object]) -> float:
    """What one call takes; it must wait for the device itself."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def wall_and_processor_seconds(task: Callable[[], object]) -> tuple[float, float]:
    """As `seconds`, with what all threads of this process spent on a processor.

    The latter is also disturbed by other programs, but less: by caches they share, not by waiting
    for a core.
    """
    start = time.process_time()
    wall = seconds(task)
    return wall, time.process_time() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def setting() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
    }


def parser(doc: str, *, config: str | None = None) -> argparse.ArgumentParser:
    """A parser with --json and, where `config` is given, --config, by default configs/`config`."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if config is not None:
        made.add_argument("--config", default=str(ROOT / "configs" / config))
    made.add_argument("--json", metavar="PATH", help="also write the result there")
    return made


def parse(
    made: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, "ConfigDict"]:
    """Returns the arguments, and the config with its --config.FIELD=VALUE overrides."""
    from ddpm_jax.experiments import config as configs  # needs more than JAX, and few benchmarks do

    arguments, rest = made.parse_known_args(argv)
    overrides, others = configs.split_overrides(rest)
    if others:
        made.error(f"unknown arguments: {' '.join(others)}")
    return arguments, configs.override(configs.load_config(arguments.config), overrides)


def report(result: Mapping[str, Any], path: str | None) -> None:
    """Prints a result as two columns, and writes it as JSON where a path is given."""
    for name, value in result.items():
        print(f"{name.replace('_', ' '):28} {_shown(name, value)}")
    _write(result, path)


def report_table(
    where: Mapping[str, Any], table: str, rows: Sequence[Mapping[str, Any]], path: str | None
) -> None:
    """Prints where it was measured and a table, and writes its rows as JSON where a path is
    given."""
    print(
        ", ".join(
            f"{name.replace('_', ' ')} {_shown(name, value)}" for name, value in where.items()
        )
    )
    print(table)
    _write({"setting": where, "results": rows}, path)


def _write(result: Mapping[str, Any], path: str | None) -> None:
    if path:
        pathlib.Path(path).write_text(json.dumps(result, indent=2) + "\n")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "   ".join(f"{key} {_shown(name, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "   ".join(_shown(name, item) for item in value)
    if value is None:
        return "-"
    if not isinstance(value, float | int):
        return str(value)
    if name.startswith("share"):
        return f"{100 * value:.2f} %"
    if name.startswith("flop"):
        return f"{value / 1e9:,.2f} G"
    if "bytes" in name:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
