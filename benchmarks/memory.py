"""Memory: bytes an image by recomputation and batch, the largest model of 80 GiB, peaks.

    python benchmarks/memory.py                        tables by arithmetic and by XLA's report
    python benchmarks/memory.py --peaks                peaks of processes, against eager PyTorch
    python benchmarks/memory.py --peaks --network medium --batch_size 64
    python benchmarks/memory.py --small                toy sizes: a test

By arithmetic: a model's state is the parameters, one average of them and Adam's two moments, 16
bytes a parameter in float32, and a step adds the gradient, 4 more; the activations are what the
forward pass of `jax.vjp` hands to the backward pass, whose shapes are known without computing, and
where blocks are recomputed, what one block hands on; of a U-Net, whose blocks differ, that is not
counted, and no largest batch given.
XLA's own report is `compiled.memory_analysis()` of the same step on this machine: arguments and
temporary memory. A peak is VmHWM (Linux) of a process of its own, above what it had before.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from comparison import Batch, mean_squared_error, our_training_step
from gpu_parts.networks import Measured, measured
from gpu_parts.ours import random_params, tree_shapes
from measuring import ROOT, parser, report_table, setting

from ddpm_jax.models.dit import SIZES, DiT
from ddpm_jax.models.rematerialization import REMAT
from ddpm_jax.models.unet import UNet

GIB = 2**30
STATE_BYTES = 16  # a parameter: itself, its average, Adam's moments
GRADIENT_BYTES = 4
USABLE = 0.9  # of a device's memory: the rest is the libraries', and what lies between arrays
DEVICE_GIB = 80
PEAK_NETWORKS = {
    "small": UNet(resolution=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,)),
    "medium": UNet(ch=64, ch_mult=(1, 2), num_res_blocks=1),
    "cifar10": UNet(),
}
TASKS = ("forward", "training")
LIBRARIES = ("ours", "pytorch")


def bytes_of(tree: Any) -> int:
    """The bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_parameters(of: Measured) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree_shapes(of)))


def kept_bytes(of: Measured, *, remat: str, dtype: str) -> int:
    """What a forward pass hands to the backward pass, of one image more in the batch.

    What does not grow with the batch are the parameters, perhaps in another type.
    """
    network, loss_of = of.network.clone(remat=remat, dtype=dtype), mean_squared_error

    def kept(size: int) -> int:
        batch, keys = of.batch(size), jax.random.split(jax.random.key(0), size)
        examples = batch.x, batch.t, batch.eps, of.condition(size), keys

        def pass_forward(params: Any) -> Any:
            return jax.vjp(lambda params: loss_of(network)(params, *examples), params)[1]

        return bytes_of(jax.eval_shape(pass_forward, tree_shapes(of)))

    return kept(3) - kept(2)


def recomputed_bytes(of: Measured, *, remat: str, dtype: str) -> int:
    """What a block of a DiT hands on for an image while it is recomputed, besides what is kept."""
    if remat == "none":
        return 0

    def block(remat: str) -> int:
        shallow = (of._replace(network=of.network.clone(depth=depth)) for depth in (1, 2))
        one, two = (kept_bytes(each, remat=remat, dtype=dtype) for each in shallow)
        return two - one

    return block("none") - block(remat)


def report_of_xla(of: Measured, size: int, *, remat: str, dtype: str) -> dict[str, int]:
    """The bytes that XLA reports of a training step, with an average, compiled here."""
    network, batch = of.network.clone(remat=remat, dtype=dtype), of.batch(size)
    loss, optimizer, params = mean_squared_error(network), optax.adam(1e-4), tree_shapes(of)
    keys = jax.random.split(jax.random.key(0), size)
    state = params, params, jax.eval_shape(optimizer.init, params)

    def step(state: Any, *examples: Any) -> Any:
        params, average, moments = state
        gradient = jax.grad(loss)(params, *examples)
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, average, params)
        return params, average, moments

    examples = batch.x, batch.t, batch.eps, of.condition(size), keys
    lowered = jax.jit(step, donate_argnums=0).lower(state, *examples)
    found = lowered.compile().memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "reused": found.alias_size_in_bytes,
    }


def by_recomputation(networks: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Rows of `bytes an image`, and of the largest batch of a device."""
    rows = []
    for name, of in networks.items():
        state = (STATE_BYTES + GRADIENT_BYTES) * of_any_depth(num_parameters, of)
        for dtype in ("float32", "bfloat16"):
            for remat in REMAT:
                kept = of_any_depth(functools.partial(kept_bytes, remat=remat, dtype=dtype), of)
                largest = "-"
                if remat == "none" or isinstance(of.network, DiT):
                    needs = kept + recomputed_bytes(of, remat=remat, dtype=dtype)
                    largest = max(0, math.floor((USABLE * DEVICE_GIB * GIB - state) / needs))
                rows.append(
                    {
                        "network": name,
                        "dtype": dtype,
                        "remat": remat,
                        "bytes_an_image": kept,
                        "state_bytes": state,
                        "largest_batch": largest,
                    }
                )
    return rows


def against_xla(of: Measured, sizes: tuple[int, ...], dtype: str) -> list[dict[str, Any]]:
    """Rows of the arithmetic beside XLA's report, of every recomputation and batch."""
    rows, parameters = [], num_parameters(of)
    for remat in REMAT:
        kept = kept_bytes(of, remat=remat, dtype=dtype)
        for size in sizes:
            found = report_of_xla(of, size, remat=remat, dtype=dtype)
            state = STATE_BYTES * parameters
            rows.append(
                {
                    "network": of.name,
                    "remat": remat,
                    "batch": size,
                    "state": state,
                    "gradient_and_kept": GRADIENT_BYTES * parameters + kept * size,
                    **found,
                }
            )
    return rows


def transformer(hidden_size: int, depth: int) -> Measured:
    """A DiT/2 on latents of 32x32x4 with heads of 64 channels."""
    network = DiT(
        hidden_size=hidden_size,
        depth=depth,
        num_heads=hidden_size // 64,
        num_classes=1000,
        out_channels=4,
        time_embedding="cos_sin_inclusive",
    )
    return Measured(network, 32, 4, (1,))


def of_any_depth(count: Callable[[Measured], int], of: Measured) -> int:
    """A count of a network; that of a DiT is linear in its depth, and follows from two shallow
    ones, which are traced faster."""
    if not isinstance(of.network, DiT):
        return count(of)
    one, two = (count(of._replace(network=of.network.clone(depth=blocks))) for blocks in (1, 2))
    return one + (of.network.depth - 1) * (two - one)


def largest_model(remat: str, batch_size: int, *, depth: int = 28) -> dict[str, Any]:
    """The widest DiT of a depth that trains in bfloat16 on one device with this batch."""

    def needs(hidden_size: int) -> tuple[int, int]:
        of = transformer(hidden_size, depth)
        kept = of_any_depth(lambda of: kept_bytes(of, remat=remat, dtype="bfloat16"), of)
        kept += recomputed_bytes(of, remat=remat, dtype="bfloat16")
        parameters = of_any_depth(num_parameters, of)
        return parameters, (STATE_BYTES + GRADIENT_BYTES) * parameters + kept * batch_size

    fits, too_large = 1, 128  # times 64 channels
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if needs(64 * middle)[1] <= USABLE * DEVICE_GIB * GIB:
            fits = middle
        else:
            too_large = middle
    parameters, total = needs(64 * fits)
    return {
        "remat": remat,
        "batch": batch_size,
        "hidden_size": 64 * fits,
        "depth": depth,
        "parameters": parameters,
        "gib": total / GIB,
    }


def peak(library: str, task: str, network: UNet, size: int) -> dict[str, float]:
    """Peaks of this process in bytes above what it had with weights and batch, by its phases."""
    of = Measured(network, network.resolution, 3, (size,))
    batch = of.batch(size)
    run = _ours(of, task, batch) if library == "ours" else _pytorch(of, task, batch)
    before = _status("VmRSS")
    run()
    first = _status("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)  # gives back what compiling has left
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # a new peak from here
    for _ in range(3):
        run()
    return {
        "before": before,
        "first_call": first - before,
        "calls": max(0, _status("VmHWM") - before),
        "weights": 4 * num_parameters(of),
    }


def _ours(of: Measured, task: str, batch: Batch) -> Callable[[], Any]:
    params = random_params(of)
    if task == "training":
        step = our_training_step(of.network, params, batch)
        return lambda: float(step())
    forward = jax.jit(lambda params, x, t: of.network.apply({"params": params}, x, t))
    params, x, t = jax.device_put((params, batch.x, batch.t))
    return lambda: np.asarray(forward(params, x, t))


def _pytorch(of: Measured, task: str, batch: Batch) -> Callable[[], Any]:
    import torch
    from pytorch_peers import channels_first, pytorch_training_step, pytorch_unet

    network = pytorch_unet(of.network, "cpu")
    if task == "training":
        step = pytorch_training_step(network, batch, "float32", "cpu", {})
        return lambda: float(step())
    x, t = channels_first(batch.x, "cpu"), torch.tensor(batch.t)

    def forward() -> None:
        with torch.no_grad():
            network.eval()(x, t)

    return forward


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


def peaks(network: str, size: int) -> list[dict[str, Any]]:
    """The peaks of all libraries and tasks, each in a process of its own."""
    rows = []
    for task in TASKS:
        for library in LIBRARIES:
            flags = ["--one", f"{library}:{task}", "--network", network, "--batch_size", str(size)]
            done = subprocess.run(
                [sys.executable, __file__, *flags], cwd=ROOT, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"task": task, "library": library, **found})
    return rows


def table(rows: list[dict[str, Any]], bytes_in: tuple[str, ...], unit: float = 2**20) -> str:
    """Rows as a table; the columns of bytes in MiB."""
    columns = list(rows[0])
    head = [f"{name.replace('_', ' ')}{', MiB' if name in bytes_in else ''}" for name in columns]
    lines = [f"| {' | '.join(head)} |", "|---" * len(columns) + "|"]
    for row in rows:
        shown = [
            f"{row[name] / unit:,.1f}"
            if name in bytes_in
            else f"{row[name]:,.1f}"
            if isinstance(row[name], float)
            else f"{row[name]:,}"
            if isinstance(row[name], int)
            else row[name]
            for name in columns
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    made = parser(__doc__)
    made.add_argument("--peaks", action="store_true", help="only the peaks, against PyTorch")
    made.add_argument(
        "--network", choices=list(PEAK_NETWORKS), default="small", help="of the peaks"
    )
    made.add_argument("--batch_size", type=int, default=16, help="of the peaks")
    made.add_argument("--small", action="store_true", help="toy sizes")
    made.add_argument("--one", help=argparse.SUPPRESS)  # "ours:training": this process alone
    flags = made.parse_args(argv)
    if flags.one:
        library, task = flags.one.split(":")
        print(json.dumps(peak(library, task, PEAK_NETWORKS[flags.network], flags.batch_size)))
        return []
    if flags.peaks:
        rows = peaks(flags.network, flags.batch_size)
        named = ("before", "first_call", "calls", "weights")
        report_table(setting(), table(rows, named), rows, flags.json)
        return rows
    networks = {name: measured(name, small=flags.small) for name in ("unet", "dit")}
    if not flags.small:
        for size in ("L", "XL"):
            dit = dataclasses.replace(networks["dit"].network, **SIZES[size]._asdict())
            networks[f"dit {size}/2"] = networks["dit"]._replace(network=dit)
    kept = by_recomputation(networks)
    checks = [measured(name, small=True) for name in networks] if flags.small else CHECKED
    checked = [row for of in checks for row in against_xla(of, of.batch_sizes[:1], "float32")]
    largest = [largest_model(remat, 32) for remat in ("none", "blocks")] if not flags.small else []
    tables = [
        table(kept, ("bytes_an_image", "state_bytes")),
        table(checked, ("state", "gradient_and_kept", "arguments", "temporary", "reused")),
        *([table(largest, ())] if largest else []),
    ]
    rows = [*kept, *checked, *largest]
    report_table(setting(), "\n".join(tables), rows, flags.json)
    return rows


CHECKED = (
    Measured(transformer(256, 4).network.clone(num_classes=10), 16, 4, (32,)),
    Measured(PEAK_NETWORKS["small"], 16, 3, (32,)),
)


if __name__ == "__main__":
    main()
