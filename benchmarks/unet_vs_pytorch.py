"""The CIFAR-10 U-Net against PyTorch: diffusers' `UNet2DModel`, eager, same weights, machine,
threads and precision.

    pip install -e '.[parity]' && python benchmarks/unet_vs_pytorch.py [--batch_size 8] [--small]
    [--dtype bfloat16]

Checks first that both networks return the same output, then times a forward pass (no dropout) and a
training step: mean squared error, gradients, Adam; dropout 0.1 in both. Runs of the two are
interleaved, since other work on the machine disturbs both alike, and medians are reported with the
fastest run next to them, and the ratio of what the threads of each spent on the processor. Both use
the GPU if both can, else the CPU with the same number of threads. A ratio above 1 means that ours
is faster.
"""

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from comparison import TOLERANCE, Batch, our_training_step, relative_difference
from measuring import parser, report_table, seconds, setting, wall_and_processor_seconds

from ddpm_jax import host_memory
from ddpm_jax.interop.diffusers import unet_params_from_diffusers
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet

try:
    import diffusers
    import torch
    from pytorch_peers import channels_first, pytorch_arrays, pytorch_training_step, pytorch_unet
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

CIFAR10 = UNet()
SMALL = UNet(resolution=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))
Tasks = tuple[Callable[[], Any], Callable[[], None]]  # a forward pass and a training step


class Pair(NamedTuple):
    """A network of ours and theirs with the same weights, and what both are given."""

    ours: UNet | DiT
    theirs: torch.nn.Module
    params: dict  # of ours
    batch: Batch
    condition: Condition | None  # of ours
    told: dict[str, torch.Tensor]  # inputs of theirs besides images and times


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one task, in seconds."""

    task: str
    ours: list[float]
    pytorch: list[float]
    ours_processor: list[float]
    pytorch_processor: list[float]
    compile: float

    @property
    def ratio_of_processor(self) -> float:
        return statistics.median(self.pytorch_processor) / statistics.median(self.ours_processor)

    @property
    def ratio(self) -> float:
        return statistics.median(self.pytorch) / statistics.median(self.ours)

    @property
    def ratio_of_fastest(self) -> float:
        return min(self.pytorch) / min(self.ours)


def pytorch_tasks(
    network: torch.nn.Module, batch: Batch, dtype: str, device: str, **told: torch.Tensor
) -> Tasks:
    """Returns their forward pass and their training step; each call waits for the device.

    `told` is the inputs of the network besides images and times.
    """
    x, t = channels_first(batch.x, device), torch.tensor(batch.t, device=device)
    # The same float32 as XLA's on a GPU, where both round the factors of a product to
    # TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    step = pytorch_training_step(network, batch, dtype, device, told)

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> torch.Tensor:
        network.eval()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            y = network(x, t, **told).sample
        finish()
        return y

    def train() -> None:
        network.train()
        step()
        finish()

    return forward, train


def unet_pair(unet: UNet, batch_size: int, device: str) -> Pair:
    """Returns a U-Net of ours and diffusers', with the weights that diffusers draws."""
    network = pytorch_unet(unet, device)
    params = unet_params_from_diffusers(pytorch_arrays(network), unet)
    return Pair(unet, network, params, Batch.random(batch_size, unet.resolution), None, {})


def tasks_of(pair: Pair, dtype: str, device: str) -> tuple[Tasks, Tasks]:
    """Returns our forward pass and training step, and theirs."""
    return (
        our_tasks(pair.ours, pair.params, pair.batch, pair.condition),
        pytorch_tasks(pair.theirs, pair.batch, dtype, device, **pair.told),
    )


def our_tasks(
    network: UNet | DiT, params: dict, batch: Batch, condition: Condition | None = None
) -> Tasks:
    """Returns our forward pass and our training step; each call finishes its work on the device."""
    x, t = jnp.asarray(batch.x), jnp.asarray(batch.t)
    apply = jax.jit(network.apply)
    params = jax.tree.map(jnp.array, params)
    step = our_training_step(network, params, batch, condition)

    def forward() -> jax.Array:
        return jax.block_until_ready(apply({"params": params}, x, t, condition))

    def train() -> None:
        jax.block_until_ready(step())

    return forward, train


def check_same_output(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
    """Returns the relative root mean square difference of two outputs; leaves the program if it is
    too large."""
    difference = relative_difference(ours, theirs)
    if not difference < TOLERANCE[dtype]:
        sys.exit(
            f"The networks differ by {difference:.1e} on the same weights, above "
            f"{TOLERANCE[dtype]:.0e}: not timed."
        )
    return difference


def compare(
    task: str, ours: Callable[[], object], pytorch: Callable[[], object], repeats: int
) -> Row:
    """Times two tasks in turns; the first call of each, where ours compiles, is not among the
    runs."""
    first = seconds(ours)
    pytorch()
    turns = [
        (*wall_and_processor_seconds(ours), *wall_and_processor_seconds(pytorch))
        for _ in range(repeats)
    ]
    our_runs, our_processor, their_runs, their_processor = map(list, zip(*turns, strict=True))
    return Row(
        task,
        our_runs,
        their_runs,
        our_processor,
        their_processor,
        first - statistics.median(our_runs),
    )


def choose_device() -> str:
    """Returns "cuda" where both libraries have a GPU, "cpu" where PyTorch has none; leaves the
    program otherwise."""
    if not torch.cuda.is_available():
        jax.config.update("jax_platforms", "cpu")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return "cpu"
    if jax.default_backend() != "gpu":
        sys.exit(
            "PyTorch has a GPU and JAX has none: install jax[cuda13], or hide it with "
            "CUDA_VISIBLE_DEVICES=''."
        )
    return "cuda"


def parity_setting() -> dict[str, Any]:
    """Where it was measured, and against what."""
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {**setting(), "threads_of_pytorch": torch.get_num_threads(), **versions}


def table(rows: list[Row]) -> str:
    """Formats the rows for reading."""
    lines = [
        f"{'':16}{'ours':>20}{'PyTorch':>20}{'ratio':>16}{'of processor':>16}{'our compilation':>18}"
    ]
    for row in rows:
        ours, theirs = (
            f"{statistics.median(s):.3f} s ({min(s):.3f})" for s in (row.ours, row.pytorch)
        )
        ratio = f"{row.ratio:.2f} ({row.ratio_of_fastest:.2f})"
        lines.append(
            f"{row.task:16}{ours:>20}{theirs:>20}{ratio:>16}{row.ratio_of_processor:>16.2f}{row.compile:>16.1f} "
            "s"
        )
    return "\n".join([*lines, "Medians; of the fastest run in brackets."])


def define_flags(doc: str, *, batch_size: int) -> argparse.ArgumentParser:
    """The flags of a comparison of networks."""
    made = parser(doc)
    made.add_argument("--batch_size", type=int, default=batch_size)
    made.add_argument(
        "--dtype", choices=sorted(TOLERANCE), default="float32", help="of the computation"
    )
    made.add_argument("--repeats", type=int, default=7, help="timed runs of each task")
    return made


def compare_networks(
    ours: Tasks, pytorch: Tasks, params: dict, flags: argparse.Namespace
) -> list[Row]:
    """Checks that both networks return the same, times their tasks and prints the table."""
    (our_forward, our_train), (their_forward, their_train) = ours, pytorch
    compiling = seconds(our_forward)
    theirs = their_forward().float().cpu().numpy().transpose(0, 2, 3, 1)
    difference = check_same_output(np.asarray(our_forward()), theirs, flags.dtype)
    forward = compare("forward", our_forward, their_forward, flags.repeats)
    rows = [dataclasses.replace(forward, compile=compiling - statistics.median(forward.ours))]
    rows.append(compare("training step", our_train, their_train, flags.repeats))

    measured = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch_size": flags.batch_size,
        "dtype": flags.dtype,
        "relative_difference": difference,
    }
    results = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows]
    report_table(measured | parity_setting(), table(rows), results, flags.json)
    return rows


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs the comparison and prints the table."""
    made = define_flags(__doc__, batch_size=8)
    made.add_argument(
        "--small", action="store_true", help="a network of 0.7 M parameters at 16x16 instead"
    )
    flags = made.parse_args(argv)
    host_memory.keep_freed()  # as train.py does, here for both

    device = choose_device()
    unet = (SMALL if flags.small else CIFAR10).clone(dtype=flags.dtype)
    pair = unet_pair(unet, flags.batch_size, device)
    return compare_networks(*tasks_of(pair, flags.dtype, device), pair.params, flags)


if __name__ == "__main__":
    main()
