"""How cost grows: with the batch, the resolution, the devices, the steps, the images evaluated.

    python benchmarks/growth.py [--only batch,devices] [--pictures docs/images]
    python benchmarks/growth.py --small                 few and small sizes: a test

A tiny U-Net (one level of 32 channels), a training step of it, a sampling call, the bound and the
metrics of features. Seconds are those that all threads spent on a processor, the least of several
runs; programs are counted by the instructions of the lowered module. A slope is the exponent s of
cost ~ size^s, fitted to the upper half of the sizes, where what a call costs at any size no longer
shows: 1 is proportional. A cost above its bound is a defect, and the exit code is 1.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from comparison import Batch, our_training_step
from gpu_parts.networks import Measured
from gpu_parts.ours import random_params
from measuring import ROOT, parser, report_table, setting

import ddpm_jax
from ddpm_jax.evaluation.frechet import frechet_distance_of_sets
from ddpm_jax.evaluation.kernel_distance import kernel_inception_distance
from ddpm_jax.evaluation.neighbours import neighbour_measures
from ddpm_jax.models.unet import UNet

TOLERANCE = 0.35  # of a slope: caches that overflow, other programs
DEVICE_BATCH = 64  # examples on all virtual devices together


class Cost(NamedTuple):
    """What grows with what, and how fast it may."""

    name: str
    sizes: list[int]
    values: list[float]
    unit: str
    bound: float | None  # the largest slope; None where it is only shown

    @property
    def slope(self) -> float:
        half = (len(self.sizes) - 1) // 2
        x, y = np.log(self.sizes[half:]), np.log(self.values[half:])
        return float(np.polyfit(x, y, 1)[0])

    @property
    def is_defect(self) -> bool:
        return self.bound is not None and self.slope > self.bound + TOLERANCE


def processor_seconds(task: Callable[[], object], repeats: int) -> float:
    """The least of several runs; a run compiles nothing."""
    task()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        task()
        best = min(best, time.process_time() - start)
    return best


def unet(resolution: int, mid_block: str = "blocks") -> UNet:
    return UNet(
        resolution=resolution,
        ch=32,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        mid_block=mid_block,
        dropout=0.0,
    )


def training(network: UNet, size: int, repeats: int) -> tuple[float, float]:
    """Processor seconds of a training step, and MiB of the arrays that its backward pass needs."""
    from memory import kept_bytes

    side = network.resolution
    of = Measured(network, side, 3, (size,))
    step = our_training_step(of.network, random_params(of), Batch.random(size, side))
    kept = kept_bytes(of, remat="none", dtype="float32") * size / 2**20
    return processor_seconds(lambda: jax.block_until_ready(step()), repeats), kept


def by_batch(small: bool) -> list[Cost]:
    sizes = [1, 2, 4] if small else [1, 4, 16, 64, 256, 512]
    found = [training(unet(16), size, 3) for size in sizes]
    seconds, kept = zip(*found, strict=True)
    return [
        Cost("training step", sizes, list(seconds), "processor s", 1.0),
        Cost("kept for the backward pass", sizes, list(kept), "MiB", 1.0),
    ]


def by_resolution(small: bool) -> list[Cost]:
    """Pixels grow as the square of a side, what attends to what as its fourth power."""
    sides, costs = [8, 16] if small else [16, 32, 64, 128], []
    for middle, name, bound in (("blocks", "", 2.0), ("attention", ", with attention", 4.0)):
        found = [training(unet(side, middle), 2, 3) for side in sides]
        seconds, kept = map(list, zip(*found, strict=True))
        costs += [
            Cost(f"training step{name}", sides, seconds, "processor s", bound),
            Cost(f"kept for the backward pass{name}", sides, kept, "MiB", 2.0),
        ]
    return costs


def by_steps(small: bool) -> list[Cost]:
    """A sampling call of N steps, and the instructions of its program, which may not grow."""
    of = Measured(unet(8), 8, 3, (4,))
    params = random_params(of)
    chain = ddpm_jax.Chain(ddpm_jax.make_betas("linear", 1000))
    process = ddpm_jax.make_process(chain, "eps", "fixed_small")
    noise = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    sizes = [4, 8] if small else [8, 32, 128, 512, 1000]
    seconds, instructions = [], []
    for steps in sizes:
        sampler = ddpm_jax.make_sampler("ddim", chain, steps=steps)

        def denoiser(params, sampler=sampler):
            return process.denoiser(
                lambda x, t: of.network.apply({"params": params}, x, t),
                sampler.schedule,
                clip="static",
            )

        def call(params, noise, sampler=sampler, denoiser=denoiser):
            return ddpm_jax.sample(denoiser(params), sampler, noise).x_0

        program = jax.jit(call)
        instructions.append(program.lower(params, noise).as_text().count("\n"))
        seconds.append(
            processor_seconds(
                lambda program=program: jax.block_until_ready(program(params, noise)), 3
            )
        )
    return [
        Cost("sampling call", sizes, seconds, "processor s", 1.0),
        Cost("its program", sizes, instructions, "lines", 0.0),
    ]


def by_images(small: bool) -> list[Cost]:
    """The bound of N images, and the metrics of features [N, 64] against as many others."""
    sizes = [64, 128] if small else [256, 512, 1024, 2048, 4096]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, sizes[-1], 64)).astype(np.float32)
    metrics = {
        "fid": (frechet_distance_of_sets, 1.0),
        "kid": (kernel_inception_distance, 2.0),  # of all pairs
        "precision, recall, density, coverage": (neighbour_measures, 2.0),  # likewise
    }
    costs = []
    for name, (metric, bound) in metrics.items():
        seconds = [
            processor_seconds(lambda n=n, metric=metric: metric(*features[:, :n]), 2) for n in sizes
        ]
        costs.append(Cost(name, sizes, seconds, "processor s", bound))
    process = ddpm_jax.make_process(
        ddpm_jax.Chain(ddpm_jax.make_betas("linear", 1000)), "eps", "fixed_small"
    )
    model = ddpm_jax.from_network(lambda x, t: 0.9 * x, process, (8, 8, 1))
    images = rng.integers(0, 256, (sizes[-1], 8, 8, 1), np.uint8)

    def bound(count: int) -> object:
        return model.bits_per_dim(images[:count], timestep_stride=5, batch_size=64)

    seconds = [processor_seconds(lambda n=n: bound(n), 2) for n in sizes]
    return [*costs, Cost("bound at a stride of 5", sizes, seconds, "processor s", 1.0)]


def by_devices(small: bool) -> list[Cost]:
    """A training step of one global batch on virtual devices, each count in its own process."""
    counts, seconds, compiling, lines = [1, 2] if small else [1, 2, 4, 8], [], [], []
    for count in counts:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, __file__, "--one_device_count"],
            env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds.append(found["seconds"])
        compiling.append(found["compiling"])
        lines.append(found["lines"])
    return [
        Cost("training step, all devices together", counts, seconds, "processor s", 0.0),
        Cost("its compilation", counts, compiling, "processor s", 0.0),
        Cost("its program", counts, lines, "lines", 0.0),
    ]


def one_device_count() -> dict[str, float]:
    """What a step takes on this process's devices."""
    from train_step import random_batch

    from ddpm_jax.distributed.pmap import map_step
    from ddpm_jax.experiments import config as configs
    from ddpm_jax.experiments.building import build
    from ddpm_jax.experiments.trainer import build_training, init_state
    from ddpm_jax.randomness import base_key

    config = configs.override(
        configs.load_config(str(ROOT / "configs" / "digits.py")),
        {
            "model.ch": "32",
            "model.ch_mult": "(1,)",
            "model.num_res_blocks": "1",
            "model.attn_resolutions": "(8,)",
            "train.batch_size": str(DEVICE_BATCH),
        },
    )
    model = build(config)
    training = build_training(model)
    parallelism = training.parallelism
    state, key = parallelism.place(init_state(model, training)), base_key(0)
    batch = parallelism.to_devices([random_batch(DEVICE_BATCH, model.image_shape)])
    lowered = map_step(training.train_step).lower(state, batch, key)
    start = time.process_time()
    program = lowered.compile()
    compiling = time.process_time() - start
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))
        best = min(best, time.process_time() - start)
    lines = lowered.as_text().count("\n")
    return {"seconds": best, "compiling": compiling, "lines": lines}


GROWTHS = {
    "batch": ("batch", by_batch),
    "resolution": ("pixels of a side", by_resolution),
    "devices": ("devices", by_devices),
    "steps": ("steps", by_steps),
    "images": ("images", by_images),
}


def draw(path: str, xlabel: str, costs: Sequence[Cost]) -> None:
    """Draws the costs over the sizes, both logarithmic, each in units of its first value."""
    from ddpm_jax.plotting.figures import new_figure, write_figure

    figure = new_figure(4.6, 3.4, dpi=100)
    axis = figure.subplots()
    for cost, mark in zip(costs, "osD^v", strict=False):
        values = np.array(cost.values) / cost.values[0]
        label = f"{cost.name}: {cost.slope:.2f}"
        axis.plot(cost.sizes, values, marker=mark, markersize=4, linewidth=1.2, label=label)
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="cost, times the first")
    axis.set_xticks(costs[0].sizes, [f"{size:,}" for size in costs[0].sizes], minor=False)
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, title="exponent at the upper end", title_fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure, colours=64)


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(GROWTHS)}")
    made.add_argument("--pictures", metavar="DIR", help="also draw growth_NAME.png there")
    made.add_argument("--small", action="store_true", help="few and small sizes")
    made.add_argument("--one_device_count", action="store_true", help="this process alone, as JSON")
    flags = made.parse_args(argv)
    if flags.one_device_count:
        print(json.dumps(one_device_count()))
        return 0
    names = flags.only.split(",") if flags.only else list(GROWTHS)
    if unknown := [name for name in names if name not in GROWTHS]:
        made.error(f"there is no {unknown[0]}: choose among {', '.join(GROWTHS)}")
    rows, lines, defects = [], ["| with | what | sizes | cost | slope | at most |"], 0
    lines.append("|---" * 6 + "|")
    for name in names:
        xlabel, measure = GROWTHS[name]
        costs = measure(flags.small)
        for cost in costs:
            defects += cost.is_defect
            sizes = ", ".join(map(str, cost.sizes))
            values = ", ".join(f"{value:,.3g}" for value in cost.values)
            lines.append(
                f"| {name} | {cost.name}, {cost.unit} | {sizes} | {values} "
                f"| {cost.slope:.2f} | {'' if cost.bound is None else f'{cost.bound:g}'} |"
            )
            rows.append({"with": name, **cost._asdict(), "slope": cost.slope})
        if flags.pictures:
            draw(os.path.join(flags.pictures, f"growth_{name}.png"), xlabel, costs)
    report_table(setting(), "\n".join(lines), rows, flags.json)
    return int(defects > 0 and not flags.small)


if __name__ == "__main__":
    sys.exit(main())
