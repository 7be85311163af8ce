"""The layers of the small first stage, each at its shape, against PyTorch's: where its time goes.

    pip install -e '.[parity]' && python benchmarks/layers_vs_pytorch.py [--layers "conv 64"]

For each layer the processor's time of all threads, and that of the busiest thread, which is what a
call takes on a machine with nothing beside it: it does not grow where other programs wait for the
same cores. Runs are interleaved; fastest, and medians in brackets. "Direct" is ours with the
convolutions as XLA has them. Only on Linux, on CPUs; PyTorch's threads sleep while they wait, since
by default they spin, which counts as processor's time.
"""

import functools
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["GOMP_SPINCOUNT"] = "0"  # read when PyTorch loads OpenMP

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from measuring import parser, report_table, setting

from ddpm_jax.models.convolution import as_written, conv2d, conv_upsampled
from ddpm_jax.models.layers import GroupNorm

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip

BATCH = 8
Task = Callable[[], object]
# height and width, channels in and out -> how many of them are in the encoder, in the decoder
CONVOLUTIONS = {
    (64, 3, 64): (1, 0),
    (64, 64, 64): (2, 3),
    (32, 64, 128): (1, 0),
    (32, 128, 128): (1, 4),
    (16, 128, 128): (6, 8),
    (16, 128, 8): (1, 0),
    (16, 4, 128): (0, 1),
    (64, 128, 64): (0, 1),
    (64, 64, 3): (0, 1),
}
HALVINGS = {(64, 64): (1, 0), (32, 128): (1, 0)}
DOUBLINGS = {(16, 128): (0, 1), (32, 128): (0, 1)}
NORMS = {
    (64, 64): (2, 4),
    (64, 128): (0, 1),
    (32, 64): (1, 0),
    (32, 128): (1, 4),
    (16, 128): (7, 8),
}


class Layer(NamedTuple):
    """The same layer of both, and the number of such in the encoder and in the decoder."""

    name: str
    counts: tuple[int, int]
    ours: Task
    pytorch: Task
    direct: Task


def images(rng: np.random.Generator, side: int, channels: int) -> tuple[jax.Array, torch.Tensor]:
    """Draws a batch, in our layout and in theirs."""
    x = rng.normal(size=(BATCH, side, side, channels)).astype(np.float32)
    return jnp.asarray(x), torch.tensor(x.transpose(0, 3, 1, 2)).contiguous()


def layer(
    name: str, counts: tuple[int, int], ours: Callable, pytorch: Task, *arguments: jax.Array
) -> Layer:
    """Compiles ours for these arguments, as it is and with convolutions as written."""
    program = jax.jit(ours).lower(*arguments).compile()
    with as_written():
        direct = jax.jit(lambda *arguments: ours(*arguments)).lower(*arguments).compile()
    np.testing.assert_allclose(
        np.asarray(program(*arguments)), pytorch().numpy().transpose(0, 2, 3, 1), atol=1e-4
    )
    return Layer(
        name,
        counts,
        lambda: jax.block_until_ready(program(*arguments)),
        pytorch,
        lambda: jax.block_until_ready(direct(*arguments)),
    )


def layers() -> list[Callable[[], Layer]]:
    """The layers, each compiled when it is called."""
    rng = np.random.default_rng(0)

    def kernel(channels: int, features: int) -> tuple[jax.Array, torch.Tensor]:
        weights = rng.normal(size=(3, 3, channels, features)) / np.sqrt(9 * channels)
        weights = weights.astype(np.float32)
        return jnp.asarray(weights), torch.tensor(weights.transpose(3, 2, 0, 1)).contiguous()

    def convolution(shape: tuple[int, int, int], counts: tuple[int, int]) -> Layer:
        side, channels, features = shape
        (x, their_x), (w, their_w) = images(rng, side, channels), kernel(channels, features)
        return layer(
            f"conv {side}x{side}, {channels} to {features}",
            counts,
            lambda x, w: conv2d(x, w, padding=((1, 1), (1, 1))),
            lambda: F.conv2d(their_x, their_w, padding=1),
            x,
            w,
        )

    def halving(shape: tuple[int, int], counts: tuple[int, int]) -> Layer:
        side, channels = shape
        (x, their_x), (w, their_w) = images(rng, side, channels), kernel(channels, channels)
        return layer(
            f"conv {side}x{side}, {channels}, stride 2",
            counts,
            lambda x, w: conv2d(x, w, stride=2, padding=((0, 1), (0, 1))),
            lambda: F.conv2d(F.pad(their_x, (0, 1, 0, 1)), their_w, stride=2),
            x,
            w,
        )

    def doubling(shape: tuple[int, int], counts: tuple[int, int]) -> Layer:
        side, channels = shape
        (x, their_x), (w, their_w) = images(rng, side, channels), kernel(channels, channels)
        return layer(
            f"upsampling {side}x{side}, {channels}",
            counts,
            conv_upsampled,
            lambda: F.conv2d(F.interpolate(their_x, scale_factor=2.0), their_w, padding=1),
            x,
            w,
        )

    def norm(shape: tuple[int, int], counts: tuple[int, int]) -> Layer:
        side, channels = shape
        x, their_x = images(rng, side, channels)
        group_norm, theirs = GroupNorm(), torch.nn.GroupNorm(32, channels, eps=1e-6)
        params = group_norm.init(jax.random.key(0), x)
        return layer(
            f"group norm, swish {side}x{side}, {channels}",
            counts,
            lambda x: nn.swish(group_norm.apply(params, x)),
            lambda: F.silu(theirs(their_x)),
            x,
        )

    made = [(convolution, CONVOLUTIONS), (halving, HALVINGS), (doubling, DOUBLINGS), (norm, NORMS)]
    return [
        functools.partial(make, shape, counts)
        for make, shapes in made
        for shape, counts in shapes.items()
    ]


def thread_seconds() -> dict[str, float]:
    """What each thread of this process has spent on a processor, by its number."""
    seconds = {}
    for thread in pathlib.Path("/proc/self/task").iterdir():
        seconds[thread.name] = int((thread / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def total_and_busiest(task: Task) -> tuple[float, float]:
    """Processor's milliseconds of one call: of all threads, of the one with most."""
    before = thread_seconds()
    task()
    spent = [now - before.get(name, 0.0) for name, now in thread_seconds().items()]
    return 1e3 * sum(spent), 1e3 * max(spent)


def measure(made: Layer, repeats: int) -> dict[str, Any]:
    """Times the three in turns."""
    tasks = {"ours": made.ours, "direct": made.direct, "pytorch": made.pytorch}
    for task in tasks.values():
        task()
    turns = [
        {name: total_and_busiest(task) for name, task in tasks.items()} for _ in range(repeats)
    ]
    row = {"layer": made.name, "counts": made.counts}
    for name in tasks:
        for i, part in enumerate(("total", "busiest")):
            values = [turn[name][i] for turn in turns]
            row[f"{name}_{part}"] = {"fastest": min(values), "median": statistics.median(values)}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows for reading."""
    columns = [
        f"{name}_{part}" for name in ("ours", "direct", "pytorch") for part in ("total", "busiest")
    ]
    lines = [
        f"{'milliseconds':32}{'in':>6}" + "".join(f"{c.replace('_', ' '):>18}" for c in columns)
    ]
    for row in rows:
        cells = [f"{row[c]['fastest']:.2f} ({row[c]['median']:.2f})" for c in columns]
        counts = "{} + {}".format(*row["counts"])
        lines.append(f"{row['layer']:32}{counts:>6}" + "".join(f"{cell:>18}" for cell in cells))
    for task, i in (("encoder", 0), ("decoder", 1)):
        sums = [sum(row["counts"][i] * row[c]["fastest"] for row in rows) for c in columns]
        lines.append(f"{'these of the ' + task:32}{'':6}" + "".join(f"{s:>18.1f}" for s in sums))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures the layers and prints the table."""
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=21, help="timed runs of each layer")
    made.add_argument("--layers", default="", help="only those whose names have this in them")
    flags = made.parse_args(argv)
    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    built = [make() for make in layers()]
    rows = [measure(one, flags.repeats) for one in built if flags.layers in one.name]
    where = {**setting(), "torch": torch.__version__, "batch": BATCH}
    report_table(where, table(rows), rows, flags.json)
    return rows


if __name__ == "__main__":
    main()
