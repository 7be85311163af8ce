"""Whole calls of Stable Diffusion against PyTorch: diffusers' `StableDiffusionPipeline`, eager.

    pip install -e '.[parity]' && python benchmarks/text_sampling_vs_pytorch.py [--size full]
    [--steps 10] [--repeats 3]

From a prompt and its initial latents to a uint8 image on the host: text encoder, guided steps of
DDIM, decoder. Both read the same directory of random weights, which this script writes to a
temporary place; `full` has the parameters of Stable Diffusion 1.x, makes 512x512 pixels and takes
5 GB of disk and 16 GB of memory. Checks that both make the same image, then times calls of the two
in turns, wall clock and processor. A ratio above 1 means that ours is faster. Compilation is what
our first call takes beyond a later one.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import parser, report_table, wall_and_processor_seconds
from text_unet_vs_pytorch import SIZES, peak_gib, pytorch_text_unet
from unet_vs_pytorch import Row, choose_device, parity_setting, table

import ddpm_jax
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.text.tokenizer import clip_tokenizer
from ddpm_jax.text.tokenizer_files import write_tokenizer

try:
    import diffusers
    import torch
    import transformers
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

PROMPT = "a photograph of an astronaut riding a horse"
GUIDANCE = 7.5
WIDTHS = {"small": (32, 64, 64, 64), "full": (128, 256, 512, 512)}  # of the autoencoder
TOLERANCE = 1.0  # of the root mean square difference of the images, of 255


def write_pipeline(directory: pathlib.Path, size: str) -> None:
    """Writes diffusers' pipeline with random weights."""
    unet = SIZES[size]
    network = pytorch_text_unet(unet)
    widths = WIDTHS[size]
    levels = len(widths)
    vae = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=unet.out_channels,
        sample_size=8 * unet.resolution,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=unet.context_size,
            intermediate_size=4 * unet.context_size,
            num_attention_heads=unet.context_size // 64,
            num_hidden_layers=12,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    write_tokenizer(clip_tokenizer(), directory / "tokenizer")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "tokenizer"),
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(directory)


def our_call(directory: pathlib.Path, latents: np.ndarray, steps: int) -> Callable[[], np.ndarray]:
    """Returns what is timed: it makes uint8 [1, H, W, 3] from latents [1, h, w, C]."""
    model = ddpm_jax.load(directory)
    height, width = (8 * side for side in latents.shape[1:3])

    def call() -> np.ndarray:
        return model.sample(
            prompt=PROMPT,
            guidance=GUIDANCE,
            sampler="ddim",
            steps=steps,
            spacing="leading",
            levels="diffusers",
            height=height,
            width=width,
            noise=latents,
        )

    return call


def their_call(
    directory: pathlib.Path, latents: np.ndarray, steps: int
) -> Callable[[], np.ndarray]:
    """Returns the same of theirs."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.tensor(np.moveaxis(latents, -1, 1))

    def call() -> np.ndarray:
        images = pipeline(
            PROMPT,
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            latents=noise,
            output_type="np",
        ).images
        return (images * 255).round().astype(np.uint8)

    return call


def measure(directory: pathlib.Path, unet: TextUNet, steps: int, repeats: int) -> tuple[Row, float]:
    """Returns what was measured and how far the images differ, root mean square."""
    side = unet.resolution
    latents = np.random.default_rng(0).standard_normal((1, side, side, unet.out_channels))
    latents = latents.astype(np.float32)
    ours = our_call(directory, latents, steps)
    theirs = their_call(directory, latents, steps)
    start = time.perf_counter()
    ours_0 = np.float32(ours())
    first = time.perf_counter() - start
    difference = float(np.sqrt(np.mean((ours_0 - theirs()) ** 2)))
    if not difference < TOLERANCE:
        sys.exit(f"The images differ by {difference:.2f} of 255, above {TOLERANCE}: not timed.")
    turns = [
        (*wall_and_processor_seconds(ours), *wall_and_processor_seconds(theirs))
        for _ in range(repeats)
    ]
    our_runs, our_processor, their_runs, their_processor = map(list, zip(*turns, strict=True))
    compiling = first - statistics.median(our_runs)
    row = Row(f"{steps} steps", our_runs, their_runs, our_processor, their_processor, compiling)
    return row, difference


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison and prints the table."""
    made = parser(__doc__)
    made.add_argument("--size", choices=WIDTHS, default="small")
    made.add_argument("--steps", type=int, default=10, help="of the chain")
    made.add_argument("--repeats", type=int, default=3, help="timed calls of each")
    flags = made.parse_args(argv)
    if choose_device() != "cpu":
        sys.exit("This benchmark compares float32 on CPUs: hide the GPU.")
    transformers.utils.logging.set_verbosity_error()
    unet = SIZES[flags.size]
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        write_pipeline(directory, flags.size)
        row, difference = measure(directory, unet, flags.steps, flags.repeats)

    measured: dict[str, Any] = {
        "pixels": 8 * unet.resolution,
        "difference_of_255": difference,
        "peak_gib_of_both": peak_gib(),
    }
    results = [dataclasses.asdict(row) | {"ratio": row.ratio}]
    report_table(measured | parity_setting(), table([row]), results, flags.json)


if __name__ == "__main__":
    main()
