"""A converted model against its own code: diffusers' `UNet2DModel` of the shape of DDPM's on
CIFAR-10, 35,746,307 parameters, eager. Goal: at least level at batch 1, 8 and 64.

    pip install -e '.[parity]' && python benchmarks/converted_model.py [--batch_sizes 1,8,64]
    [--small]

diffusers saves its network, and `ddpm_jax.load` reads the directory. Checked, timed in turns and
reported as in unet_vs_pytorch.py: a forward pass at each size of batch, our compilation apart. A
run at a large batch is a long one and disturbed less, so fewer are timed: of 64 images two.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile

import jax
import numpy as np
from comparison import Batch
from measuring import parser, report_table, seconds
from unet_vs_pytorch import (
    CIFAR10,
    SMALL,
    Row,
    check_same_output,
    choose_device,
    compare,
    our_tasks,
    parity_setting,
    pytorch_tasks,
    table,
)

import ddpm_jax

try:
    from pytorch_peers import pytorch_unet
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

DTYPE = "float32"
IMAGES = 128  # in all timed runs of a size of batch together, but two runs at least


def measure(ours, pytorch, batch_size: int, repeats: int) -> tuple[Row, float]:
    """Checks that both give the same, times a forward pass of each, and returns the row and the
    relative difference."""
    outputs = []
    compiling = seconds(lambda: outputs.append(ours()))
    theirs = pytorch().float().cpu().numpy().transpose(0, 2, 3, 1)
    difference = check_same_output(np.asarray(outputs[0]), theirs, DTYPE)
    repeats = max(2, min(repeats, IMAGES // batch_size))
    row = compare(f"batch {batch_size}", ours, pytorch, repeats)
    compiling -= statistics.median(row.ours)
    return dataclasses.replace(row, compile=compiling), difference


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs the comparison and prints the table."""
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument("--batch_sizes", default="1,8,64", help="separated by commas")
    made.add_argument("--repeats", type=int, default=5, help="timed runs of each, at most")
    made.add_argument(
        "--small", action="store_true", help="a network of 0.7 M parameters at 16x16 instead"
    )
    flags = made.parse_args(argv)

    device = choose_device()
    network = pytorch_unet(SMALL if flags.small else CIFAR10, device)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        model = ddpm_jax.load(folder)
    unet = model.trained.model.network
    rows, differences = [], []
    for batch_size in map(int, flags.batch_sizes.split(",")):
        batch = Batch.random(batch_size, unet.resolution)
        ours, _ = our_tasks(unet, model.params, batch)
        theirs, _ = pytorch_tasks(network, batch, DTYPE, device)
        row, difference = measure(ours, theirs, batch_size, flags.repeats)
        rows.append(row)
        differences.append(difference)
    measured = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": DTYPE,
        "relative_difference": max(differences),
    }
    results = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows]
    report_table(measured | parity_setting(), table(rows), results, flags.json)
    return rows


if __name__ == "__main__":
    main()
