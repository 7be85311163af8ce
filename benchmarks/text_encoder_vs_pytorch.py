"""CLIP's text encoder against PyTorch: transformers' `CLIPTextModel`, eager, same weights, machine,
threads and precision.

    pip install -e '.[parity]' && python benchmarks/text_encoder_vs_pytorch.py [--batch_size 2]
    [--size small] [--dtype bfloat16]

Encodes texts of 77 tokens without gradients, after it has checked that both networks return the
same. Runs of the two are interleaved, since other work on the machine disturbs both alike, and
medians are reported with the fastest run next to them. Both use the GPU if both can, else the CPU
with the same number of threads. A ratio above 1 means that ours is faster.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from measuring import report_table
from unet_vs_pytorch import (
    Row,
    check_same_output,
    choose_device,
    compare,
    define_flags,
    parity_setting,
    table,
)

from ddpm_jax.interop.clip_text import config_from_text_encoder, text_params_from_transformers
from ddpm_jax.models.text_encoder import STABLE_DIFFUSION_2, TextEncoder

try:
    import torch
    import transformers
    from pytorch_peers import pytorch_arrays
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

SIZES = {
    "small": TextEncoder(vocab_size=1000, width=64, layers=2, heads=2, hidden=256),
    "stable_diffusion_1": TextEncoder(),
    "stable_diffusion_2": STABLE_DIFFUSION_2,
}


def pytorch_text_encoder(encoder: TextEncoder, device: str) -> torch.nn.Module:
    """Returns their network with our fields, initialised by PyTorch from a fixed seed."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**config_from_text_encoder(encoder))
    return transformers.CLIPTextModel(config).eval().to(device)


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs the comparison and prints the table."""
    made = define_flags(__doc__, batch_size=2)
    made.add_argument("--size", choices=SIZES, default="stable_diffusion_1", help="of the encoder")
    flags = made.parse_args(argv)

    device = choose_device()
    encoder = SIZES[flags.size].clone(dtype=flags.dtype)
    network = pytorch_text_encoder(encoder, device)
    params = text_params_from_transformers(pytorch_arrays(network), encoder)
    shape = (flags.batch_size, encoder.context_length)
    ids = np.random.default_rng(0).integers(0, encoder.vocab_size, shape, np.int32)
    apply = jax.jit(lambda params, ids: encoder.apply({"params": params}, ids).context)
    on_device, our_ids, their_ids = (
        jax.tree.map(jnp.array, params),
        jnp.asarray(ids),
        torch.tensor(ids, device=device),
    )

    def ours() -> jax.Array:
        return jax.block_until_ready(apply(on_device, our_ids))

    def theirs() -> torch.Tensor:
        enabled = flags.dtype == "bfloat16"
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=enabled):
            context = network(their_ids).last_hidden_state
        if device == "cuda":
            torch.cuda.synchronize()
        return context

    first = compare("encode", ours, theirs, flags.repeats)
    difference = check_same_output(
        np.asarray(ours(), np.float32), theirs().float().cpu().numpy(), flags.dtype
    )
    measured = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch_size": flags.batch_size,
        "dtype": flags.dtype,
        "relative_difference": difference,
        "transformers": transformers.__version__,
    }
    results = [dataclasses.asdict(first) | {"ratio": first.ratio}]
    report_table(measured | parity_setting(), table([first]), results, flags.json)
    return [first]


if __name__ == "__main__":
    main()
