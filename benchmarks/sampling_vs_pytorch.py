"""Whole sampling calls against PyTorch: diffusers' pipelines, eager; same weights, sampler, steps,
machine, threads.

    pip install -e '.[parity]' && python benchmarks/sampling_vs_pytorch.py [--network cifar10]
    [--steps 5]

Ours is `generation.generating`, theirs `DDIMPipeline` or `DDPMPipeline`: each draws its noise,
walks the chain and returns uint8 images on the host. Checks first that both walk the same chains
from the same noise, then times calls of the two in turns. A ratio above 1 means that ours is
faster. Compilation is what our first call takes beyond a later one, for the chain that is timed and
for one of `--more_steps`.
"""

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from measuring import parser, report_table, seconds
from unet_vs_pytorch import CIFAR10, choose_device, parity_setting

from ddpm_jax import randomness
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import Schedule, make_betas
from ddpm_jax.generation.generating import make_generate
from ddpm_jax.interop.diffusers import unet_params_from_diffusers
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.loop import Sampler, sample
from ddpm_jax.samplers.registry import make_sampler

try:
    import diffusers
    import torch
    from pytorch_peers import pytorch_unet
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

DIGITS = UNet(
    resolution=8,
    out_channels=1,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    scale_shift_norm=True,
)
# those of the configs of these names, without dropout here
NETWORKS = {"digits": DIGITS, "cifar10": CIFAR10}
DEFAULTS = {"digits": (50, 16), "cifar10": (5, 4)}  # steps, images
CHAIN = Chain(make_betas("linear", 1000, beta_start=1e-4, beta_end=0.02))
TOLERANCE = 1e-3  # of the root mean square difference of the ends of the chains, relative to theirs


class Peer(NamedTuple):
    """What a sampler of ours is called there, its settings, and which of our clippings they amount
    to."""

    pipeline: type
    scheduler: type
    settings: dict[str, Any]  # of the scheduler
    arguments: dict[str, Any]  # of the pipeline's call
    clip: str


# Their DDIM clips x_0 and by default keeps ε: with weights that are not trained such chains are
# chaotic, and two correct programs would differ. Their DPM-Solver clips nothing, and ends at the
# noise of t = 0 unless told otherwise.
SAMPLERS = {
    "ddim": Peer(
        diffusers.DDIMPipeline,
        diffusers.DDIMScheduler,
        {},
        {"eta": 0.0, "use_clipped_model_output": True},
        "static",
    ),
    "dpmpp_2m": Peer(
        diffusers.DDPMPipeline,
        diffusers.DPMSolverMultistepScheduler,
        {"final_sigmas_type": "zero"},
        {},
        "none",
    ),
    "ancestral": Peer(diffusers.DDPMPipeline, diffusers.DDPMScheduler, {}, {}, "static"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one sampler, in seconds for a call."""

    sampler: str
    ours: list[float]
    pytorch: list[float]
    compilation: dict[int, float]  # by number of steps
    difference: float  # of the ends of the chains, root mean square, relative to theirs

    @property
    def ratio(self) -> float:
        return statistics.median(self.pytorch) / statistics.median(self.ours)

    @property
    def ratios(self) -> list[float]:
        """Of each round, in increasing order."""
        return sorted(theirs / ours for ours, theirs in zip(self.ours, self.pytorch, strict=True))


@dataclasses.dataclass(frozen=True)
class Ours:
    """A network and a sampler of N steps; images are numbers 0..B-1 of seed 0."""

    unet: UNet
    params: dict
    name: str
    steps: int
    batch_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.unet.resolution, self.unet.resolution, self.unet.out_channels

    @property
    def sampler(self) -> Sampler:
        return make_sampler(self.name, CHAIN, steps=self.steps, spacing="trailing")

    def denoiser(self, params: dict, schedule: Schedule, inputs: None = None) -> Denoiser:
        return make_process(CHAIN, "eps", "fixed_small").denoiser(
            lambda x_t, time: self.unet.apply({"params": params}, x_t, time),
            schedule,
            clip=SAMPLERS[self.name].clip,
        )

    def call(self) -> Callable[[], np.ndarray]:
        """Returns what is timed: it makes uint8 [B, H, W, C]."""
        generate = make_generate(self.denoiser, self.sampler, self.image_shape)
        return lambda: generate(self.params, randomness.base_key(0), range(self.batch_size)).images

    @property
    def keys(self) -> jax.Array:
        return randomness.image_keys(randomness.base_key(0), np.arange(self.batch_size))

    def noise(self) -> Iterator[jax.Array]:
        """Yields x_T and then the noise of each row [B, H, W, C], as `call` draws them."""
        yield randomness.initial_noise(self.keys, self.image_shape)
        for t in reversed(range(self.steps)):
            yield randomness.normal(randomness.row_keys(self.keys, t), self.image_shape)

    def ends(self) -> np.ndarray:
        """The ends of the chains, float32 [B, H, W, C], before they are clipped and rounded."""
        sampler, x_T = self.sampler, next(self.noise())
        walk = jax.jit(
            lambda params: (
                sample(self.denoiser(params, sampler.schedule), sampler, x_T, self.keys).x_0
            )
        )
        return np.asarray(walk(self.params))


class Theirs:
    """A pipeline for the same."""

    def __init__(self, network: torch.nn.Module, ours: Ours):
        self.peer = SAMPLERS[ours.name]
        scheduler = self.peer.scheduler(
            1000, beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", **self.peer.settings
        )
        self.pipeline = self.peer.pipeline(network, scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        self.arguments = {
            "batch_size": ours.batch_size,
            "num_inference_steps": ours.steps,
            **self.peer.arguments,
        }

    def __call__(self) -> np.ndarray:
        """What is timed: it makes uint8 [B, H, W, C] of PyTorch's own noise."""
        images = self.pipeline(output_type="np", **self.arguments).images
        return (images * 255).round().astype(np.uint8)  # as their `numpy_to_pil`

    def ends(self, noise: Iterator[jax.Array]) -> np.ndarray:
        """As `Ours.ends`, with the noise given instead of drawn."""
        outputs, scheduler = [], self.pipeline.scheduler
        step = scheduler.step

        def recorded_step(*args, **options):
            outputs.append(step(*args, **options))
            return outputs[-1]

        def randn_tensor(shape, *, device=None, **unused):
            return torch.tensor(
                np.asarray(next(noise)).transpose(0, 3, 1, 2), device=device
            ).reshape(shape)

        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(scheduler, "step", recorded_step))
            for user in (self.peer.pipeline, self.peer.scheduler):
                patches.enter_context(mock.patch(f"{user.__module__}.randn_tensor", randn_tensor))
            self()
        return outputs[-1].prev_sample.cpu().numpy().transpose(0, 2, 3, 1)


def measure(ours: Ours, network: torch.nn.Module, *, more_steps: int, repeats: int) -> Row:
    """Compares one sampler; leaves the program if the chains differ."""
    call, theirs = ours.call(), Theirs(network, ours)
    first = seconds(call)
    expected = theirs.ends(ours.noise())
    difference = float(np.sqrt(np.mean((ours.ends() - expected) ** 2) / np.mean(expected**2)))
    if not difference < TOLERANCE:
        sys.exit(
            f"The chains of {ours.name} differ by {difference:.1e}, above {TOLERANCE:.0e}: not "
            "timed."
        )
    turns = [(seconds(call), seconds(theirs)) for _ in range(repeats)]
    our_runs, their_runs = map(list, zip(*turns, strict=True))
    longer = dataclasses.replace(ours, steps=more_steps).call()
    compilation = {
        ours.steps: first - statistics.median(our_runs),
        more_steps: seconds(longer) - seconds(longer),
    }
    return Row(ours.name, our_runs, their_runs, compilation, difference)


def table(rows: list[Row], steps: int, more: int) -> str:
    """Formats the rows for reading."""
    compiling = f"compilation, {steps} / {more} steps"
    lines = [f"{'':10}{'ours':>18}{'PyTorch':>18}{'ratio':>22}{compiling:>32}{'difference':>12}"]
    for row in rows:
        ours, theirs = (
            f"{statistics.median(s):.3f} s ({min(s):.3f})" for s in (row.ours, row.pytorch)
        )
        ratio = f"{row.ratio:.2f} ({row.ratios[0]:.2f} to {row.ratios[-1]:.2f})"
        compilation = " / ".join(f"{row.compilation[n]:.1f} s" for n in (steps, more))
        lines.append(
            f"{row.sampler:10}{ours:>18}{theirs:>18}{ratio:>22}{compilation:>32}{row.difference:>12.1e}"
        )
    return "\n".join(
        [
            *lines,
            "Medians; in brackets the fastest call, and the range of the ratio over the rounds.",
        ]
    )


def main(argv: list[str] | None = None) -> list[Row]:
    """Runs the comparison and prints the table."""
    made = parser(__doc__)
    made.add_argument("--network", choices=NETWORKS, default="digits")
    made.add_argument("--samplers", default=",".join(SAMPLERS), help="separated by commas")
    made.add_argument("--steps", type=int, help="of the chain")
    made.add_argument(
        "--more_steps",
        type=int,
        help="of the chain compiled besides; four times as many by default",
    )
    made.add_argument("--batch_size", type=int, help="images made by a call")
    made.add_argument("--repeats", type=int, default=7, help="timed calls of each")
    flags = made.parse_args(argv)

    device = choose_device()
    unet = NETWORKS[flags.network]
    steps, batch = (
        flags.steps or DEFAULTS[flags.network][0],
        flags.batch_size or DEFAULTS[flags.network][1],
    )
    more = flags.more_steps or 4 * steps
    network = pytorch_unet(unet, device).eval()
    state_dict = {
        name: value.detach().cpu().numpy() for name, value in network.state_dict().items()
    }
    params = jax.device_put(unet_params_from_diffusers(state_dict, unet))
    rows = [
        measure(
            Ours(unet, params, name, steps, batch), network, more_steps=more, repeats=flags.repeats
        )
        for name in flags.samplers.split(",")
    ]

    measured = {
        "network": flags.network,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "steps": steps,
        "batch_size": batch,
    }
    results = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows]
    report_table(measured | parity_setting(), table(rows, steps, more), results, flags.json)
    return rows


if __name__ == "__main__":
    main()
