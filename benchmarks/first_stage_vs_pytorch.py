"""A first stage against PyTorch: diffusers' `AutoencoderKL`, eager, same weights, machine, threads
and precision.

    pip install -e '.[parity]' && python benchmarks/first_stage_vs_pytorch.py [--size
    stable_diffusion]

Encodes images to moments and decodes latents, both without gradients, after it has checked that
both networks return the same. Runs of the two are interleaved, since other work on the machine
disturbs both alike, and medians are reported with the fastest run next to them. Both use the GPU if
both can, else the CPU with the same number of threads. A ratio above 1 means that ours is faster.
"""

import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from measuring import compiled, parser, report_table, seconds, spread
from unet_vs_pytorch import TOLERANCE, check_same_output, choose_device, parity_setting

from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.models.autoencoder import Autoencoder

try:
    import diffusers
    import torch
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

SIZES = {  # name -> network, images in a batch unless told
    "small": (Autoencoder(resolution=64, ch=64, ch_mult=(1, 2, 2), num_res_blocks=1), 8),
    "stable_diffusion": (Autoencoder(), 1),
}


def diffusers_network(model: Autoencoder, device: str) -> torch.nn.Module:
    """Returns their network with our fields, initialised by PyTorch from a fixed seed."""
    torch.manual_seed(0)
    levels = len(model.ch_mult)
    network = diffusers.AutoencoderKL(
        in_channels=model.image_channels,
        out_channels=model.out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(model.ch * mult for mult in model.ch_mult),
        layers_per_block=model.num_res_blocks,
        latent_channels=model.latent_channels,
    )
    return network.to(device).eval()


def pytorch_task(
    call: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray, dtype: str, device: str
) -> Callable:
    """Returns their function of one batch of our layout; each call finishes its work on the
    device."""
    batch = torch.tensor(x.transpose(0, 3, 1, 2), device=device).contiguous()
    # The same float32 as XLA's on a GPU, where both round the factors of a product to
    # TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def task() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            y = call(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    return task


def compare(
    task: str,
    model: Autoencoder,
    params: dict[str, Any],
    x: np.ndarray,
    theirs: Callable[[], torch.Tensor],
    repeats: int,
) -> dict[str, Any]:
    """Checks that both return the same of x and times them in turns; `task` is "encode" or
    "decode"."""
    apply = jax.jit(functools.partial(model.apply, method=task))
    variables, x = jax.device_put(({"params": params}, x))
    program = compiled(apply, variables, x)

    def ours() -> jax.Array:
        return jax.block_until_ready(program.call(variables, x))

    expected = theirs().float().cpu().numpy().transpose(0, 2, 3, 1)
    difference = check_same_output(np.asarray(ours()), expected, str(np.dtype(model.dtype)))
    turns = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    our_seconds, their_seconds = map(list, zip(*turns, strict=True))
    return {
        "task": task,
        "ours_images_per_second": spread([len(x) / s for s in our_seconds]),
        "pytorch_images_per_second": spread([len(x) / s for s in their_seconds]),
        "ratio": statistics.median(their_seconds) / statistics.median(our_seconds),
        "ratio_of_fastest": min(their_seconds) / min(our_seconds),
        "compile_seconds": program.compile_seconds,
        "flops": program.flops,
        "relative_difference": difference,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows for reading."""
    lines = [
        f"{'images/s':10}{'ours':>18}{'PyTorch':>18}{'ratio':>16}{'our compilation':>18}{'difference':>13}"
    ]
    for row in rows:
        rates = (row["ours_images_per_second"], row["pytorch_images_per_second"])
        ours, theirs = (f"{rate['median']:.3g} ({rate['highest']:.3g})" for rate in rates)
        ratio = f"{row['ratio']:.2f} ({row['ratio_of_fastest']:.2f})"
        compiling, difference = (
            f"{row['compile_seconds']:.1f} s",
            f"{row['relative_difference']:.1e}",
        )
        lines.append(
            f"{row['task']:10}{ours:>18}{theirs:>18}{ratio:>16}{compiling:>18}{difference:>13}"
        )
    return "\n".join([*lines, "Medians; of the fastest run in brackets."])


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the comparison and prints the table."""
    made = parser(__doc__)
    made.add_argument(
        "--size", choices=SIZES, default="small", help="4 M parameters at 64x64, or 84 M at 256x256"
    )
    made.add_argument("--batch_size", type=int, help="images; by default 8, or 1 at the large size")
    made.add_argument(
        "--dtype", choices=sorted(TOLERANCE), default="float32", help="of the computation"
    )
    made.add_argument("--repeats", type=int, default=7, help="timed runs of each task")
    flags = made.parse_args(argv)

    device = choose_device()
    model, batch_size = SIZES[flags.size]
    model, batch_size = model.clone(dtype=flags.dtype), flags.batch_size or batch_size
    network = diffusers_network(model, device)
    state_dict = {
        name: value.detach().cpu().numpy() for name, value in network.state_dict().items()
    }
    params = autoencoder_params_from_diffusers(state_dict, model)
    rng = np.random.default_rng(0)
    side, latent_side = model.resolution, model.resolution // model.factor
    images = rng.uniform(-1, 1, (batch_size, side, side, model.image_channels)).astype(np.float32)
    latents = rng.normal(size=(batch_size, latent_side, latent_side, model.latent_channels)).astype(
        np.float32
    )
    tasks = {
        "encode": (images, lambda x: network.encode(x).latent_dist.parameters),
        "decode": (latents, lambda z: network.decode(z).sample),
    }
    rows = [
        compare(task, model, params, x, pytorch_task(call, x, flags.dtype, device), flags.repeats)
        for task, (x, call) in tasks.items()
    ]
    measured = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch_size": batch_size,
        "resolution": model.resolution,
        "dtype": flags.dtype,
    }
    report_table(measured | parity_setting(), table(rows), rows, flags.json)
    return rows


if __name__ == "__main__":
    main()
