"""Memory and time of reading Stable Diffusion 1.x at its full size. Goal: peak < 1.3 x the files.

    python benchmarks/load_stable_diffusion.py [--dir DIRECTORY]

A directory with drawn weights, 4.26 GB in float32, is written to a temporary place, unless one is
named. Processes of their own then read it: to NumPy arrays and to arrays of the device, in float32
and in bfloat16. The peak is the largest resident memory of the process, that of files mapped into
memory included, less what it was before reading.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping

import numpy as np

GOAL = 1.3
CASES = (("float32", "numpy"), ("float32", "device"), ("bfloat16", "device"))
WIDTHS = [320, 640, 1280, 1280]
CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": 8,
        "block_out_channels": WIDTHS,
        "cross_attention_dim": 768,
        "sample_size": 64,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}


class Drawn(Mapping):
    """Weights that are drawn when they are looked at."""

    def __init__(self, shapes):
        self.shapes = shapes

    def __getitem__(self, name):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return 0.02 * rng.standard_normal(self.shapes[name], np.float32)

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def write(directory: pathlib.Path) -> None:
    """Write a directory of drawn weights."""
    from ddpm_jax.interop.diffusers_writing import write_pipeline
    from ddpm_jax.interop.pipeline_params import pipeline_networks
    from ddpm_jax.interop.pipeline_parts import Part, Pipeline
    from ddpm_jax.interop.released_configs import scheduler_config

    parts = {name: Part(config, {}) for name, config in CONFIGS.items()}
    scheduler = scheduler_config("epsilon", is_2=False)
    empty = Pipeline(
        directory, "StableDiffusionPipeline", **parts, scheduler=scheduler, tokenizer=None
    )
    shapes = tensor_shapes(pipeline_networks(empty))
    parts = {name: Part(config, Drawn(shapes[name])) for name, config in CONFIGS.items()}
    drawn = Pipeline(
        directory, "StableDiffusionPipeline", **parts, scheduler=scheduler, tokenizer=None
    )
    write_pipeline(
        directory, drawn, tokenizer=lambda folder: (folder / "merges.txt").write_text("")
    )


def tensor_shapes(networks) -> dict:
    """Return the shapes of all tensors of each part, by their names in the files."""
    from flax.traverse_util import unflatten_dict

    from ddpm_jax.interop.autoencoder_kl import autoencoder_params_to_diffusers, autoencoder_shapes
    from ddpm_jax.interop.clip_text import text_encoder_shapes, text_params_to_transformers
    from ddpm_jax.interop.diffusers_text_unet import text_unet_params_to_diffusers
    from ddpm_jax.interop.renaming import unet_shapes

    def renamed(shapes, network, convert):
        zeros = unflatten_dict({path: np.zeros(shape, np.int8) for path, shape in shapes.items()})
        return {name: value.shape for name, value in convert(zeros, network).items()}

    unet, vae, text, _ = networks
    return {
        "unet": renamed(unet_shapes(unet, 4), unet, text_unet_params_to_diffusers),
        "vae": renamed(autoencoder_shapes(vae), vae, autoencoder_params_to_diffusers),
        "text_encoder": renamed(text_encoder_shapes(text), text, text_params_to_transformers),
    }


def read(directory: pathlib.Path, dtype: str, where: str) -> dict:
    """Read a directory in this process; return its memory and time."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax.interop.diffusers_directory import read_pipeline
    from ddpm_jax.interop.pipeline_params import pipeline_networks, pipeline_params

    pipeline = read_pipeline(directory)
    networks = pipeline_networks(pipeline)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    files = sum(part.tensors.nbytes for part in parts)
    jnp.zeros(1).block_until_ready()
    before, start = peak(), time.perf_counter()
    params = pipeline_params(
        pipeline, networks, dtype=jnp.dtype(dtype), place=jnp.asarray if where == "device" else None
    )
    jax.block_until_ready(params)
    return {
        "dtype": dtype,
        "arrays": where,
        "files_gb": round(files / 1e9, 2),
        "peak_of_files": round((peak() - before) / files, 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes (Linux).

    `getrusage` begins with that of the parent.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=pathlib.Path, help="of a Stable Diffusion; default: drawn")
    parser.add_argument("--read", nargs=2, metavar=("DTYPE", "WHERE"), help="used by itself")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.dir, *options.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = options.dir or pathlib.Path(folder) / "sd"
        if options.dir is None:
            write(directory)
        for case in CASES:
            command = [sys.executable, __file__, "--dir", str(directory), "--read", *case]
            result = json.loads(subprocess.check_output(command, text=True))
            met = "met" if result["peak_of_files"] < GOAL else "missed"
            print(f"{result}: goal {GOAL} {met}", flush=True)


if __name__ == "__main__":
    main()
