"""The Diffusion Transformer against PyTorch: diffusers' `DiTTransformer2DModel`, eager, same
weights and threads.

    pip install -e '.[parity]' && python benchmarks/dit_vs_pytorch.py [--size S] [--batch_size 4]
    [--dtype bfloat16]

The paper's network of patches of 2x2 on latents of 32x32x4 with 1000 classes. Checked, timed and
reported as in unet_vs_pytorch.py: a forward pass, and a training step of mean squared error,
gradients and Adam.
"""

import sys

import jax.numpy as jnp
import numpy as np
from comparison import Batch
from unet_vs_pytorch import Pair, Row, choose_device, compare_networks, define_flags, tasks_of

from ddpm_jax import host_memory
from ddpm_jax.interop.diffusers_dit import dit_params_from_diffusers
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import SIZES, DiT

try:
    import torch
    from pytorch_peers import pytorch_arrays, pytorch_dit
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

LATENTS, CHANNELS, CLASSES = 32, 4, 1000


def dit_pair(size: str, batch_size: int, device: str, dtype: str = "float32") -> Pair:
    """Returns a DiT of one of the paper's sizes, ours and theirs, with labels of its classes."""
    dit = DiT(
        **SIZES[size]._asdict(),
        num_classes=CLASSES,
        out_channels=CHANNELS,
        time_embedding="cos_sin_inclusive",
        dtype=dtype,
    )
    network = pytorch_dit(dit, device, image_size=LATENTS, image_channels=CHANNELS)
    params = dit_params_from_diffusers(pytorch_arrays(network), dit)
    labels = np.random.default_rng(1).integers(0, CLASSES, batch_size)
    return Pair(
        dit,
        network,
        params,
        Batch.random(batch_size, LATENTS, CHANNELS),
        Condition(label=jnp.asarray(labels)),
        {"class_labels": torch.tensor(labels, device=device)},
    )


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs the comparison and prints the table."""
    made = define_flags(__doc__, batch_size=4)
    made.add_argument("--size", choices=SIZES, default="S", help="of the paper")
    flags = made.parse_args(argv)
    host_memory.keep_freed()  # as train.py does, here for both

    device = choose_device()
    pair = dit_pair(flags.size, flags.batch_size, device, flags.dtype)
    return compare_networks(*tasks_of(pair, flags.dtype, device), pair.params, flags)


if __name__ == "__main__":
    main()
