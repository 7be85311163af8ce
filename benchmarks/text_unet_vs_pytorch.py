"""The U-Net with cross-attention against PyTorch: diffusers' `UNet2DConditionModel`, eager.

    pip install -e '.[parity]' && python benchmarks/text_unet_vs_pytorch.py [--size full]
    [--batch_size 2] [--repeats 3]

One evaluation as guidance makes it, both halves as one batch: Stable Diffusion 1's network of 860 M
parameters on latents 64x64 (`full`, which takes 10 GB), or one of 34 M on 32x32. Same random
weights, machine, threads and precision, checked and timed as in unet_vs_pytorch.py. `--only ours`
or `--only pytorch` times one alone and reports the peak of this process's memory with it.
"""

import resource
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparison import Batch
from measuring import report_table, seconds
from unet_vs_pytorch import (
    check_same_output,
    choose_device,
    compare,
    define_flags,
    parity_setting,
    table,
)

from ddpm_jax.interop.diffusers_text_unet import text_unet_params_from_diffusers
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_to_config
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.text_unet import TextUNet

try:
    import diffusers
    import torch
    from pytorch_peers import channels_first, pytorch_arrays
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

SIZES = {
    "small": TextUNet(resolution=32, ch=64, attn_resolutions=(32, 16, 8), context_size=128),
    "full": TextUNet(),
}
TOKENS = 77


def pytorch_text_unet(unet: TextUNet) -> torch.nn.Module:
    """Returns diffusers' network with our fields and random weights."""
    torch.manual_seed(0)
    config = text_unet_to_config(unet, unet.resolution, unet.out_channels)
    return diffusers.UNet2DConditionModel.from_config(config).eval()


def our_forward(
    unet: TextUNet, params: Any, batch: Batch, context: np.ndarray
) -> Callable[[], jax.Array]:
    """Returns our evaluation; a call finishes its work."""
    apply, params = jax.jit(unet.apply), jax.tree.map(jnp.asarray, params)
    inputs = jnp.asarray(batch.x), jnp.asarray(batch.t), Condition(context=jnp.asarray(context))
    return lambda: jax.block_until_ready(apply({"params": params}, *inputs))


def their_forward(
    network: torch.nn.Module, batch: Batch, context: np.ndarray
) -> Callable[[], torch.Tensor]:
    """Returns their evaluation."""
    inputs = channels_first(batch.x, "cpu"), torch.tensor(batch.t), torch.tensor(context)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return network(*inputs).sample

    return forward


def peak_gib() -> float:
    """Returns the most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_alone(name: str, forward: Callable[[], Any], repeats: int) -> None:
    """Times one of the two and prints its memory."""
    before, first = peak_gib(), seconds(forward)
    runs = [seconds(forward) for _ in range(repeats)]
    print(
        f"{name}: first {first:.2f} s, then {statistics.median(runs):.2f} s ({min(runs):.2f}); "
        f"peak {peak_gib():.2f} GiB, {before:.2f} GiB before"
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison and prints the table."""
    made = define_flags(__doc__, batch_size=2)
    made.add_argument("--size", choices=SIZES, default="small")
    made.add_argument("--only", choices=("ours", "pytorch"), help="time one alone")
    flags = made.parse_args(argv)
    if choose_device() != "cpu" or flags.dtype != "float32":
        sys.exit("This benchmark compares float32 on CPUs: hide the GPU, leave out --dtype.")

    unet = SIZES[flags.size]
    batch = Batch.random(flags.batch_size, unet.resolution, unet.out_channels)
    rng = np.random.default_rng(1)
    context = rng.normal(size=(flags.batch_size, TOKENS, unet.context_size)).astype(np.float32)
    network = pytorch_text_unet(unet)
    if flags.only == "pytorch":
        return time_alone("PyTorch", their_forward(network, batch, context), flags.repeats)
    params = text_unet_params_from_diffusers(pytorch_arrays(network), unet)
    if flags.only == "ours":
        del network
        return time_alone("ours", our_forward(unet, params, batch, context), flags.repeats)

    ours, theirs = our_forward(unet, params, batch, context), their_forward(network, batch, context)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    del params
    compiling = seconds(ours)
    difference = check_same_output(
        np.asarray(ours()), theirs().numpy().transpose(0, 2, 3, 1), flags.dtype
    )
    row = compare("forward", ours, theirs, flags.repeats)
    measured = {
        "parameters": size,
        "batch_size": flags.batch_size,
        "relative_difference": difference,
        "first_call_s": compiling,
        "peak_gib_of_both": peak_gib(),
    }
    results = [{"ratio": row.ratio, "ours": row.ours, "pytorch": row.pytorch}]
    report_table(measured | parity_setting(), table([row]), results, flags.json)
    return None


if __name__ == "__main__":
    main()
