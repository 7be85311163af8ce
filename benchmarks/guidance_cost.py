"""What classifier-free guidance costs: sampling calls with it against calls without, same weights,
chain and labels.

    python benchmarks/guidance_cost.py [--config configs/digits_cond.py] [--steps 50] [--batch_size
    16] [--repeats 9]

Both walk DDIM over the same steps; the guided network sees every image twice, told its class and
not, in one batch. Calls of the two alternate in one process, and the ratio is that of each pair.
Goal: a median of at most 2.05. The weights are random: their values cost nothing.
"""

from collections.abc import Callable

import jax
import numpy as np
from measuring import parse, parser, report, seconds, setting, spread
from ml_collections import ConfigDict

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.generation.generating import make_generate
from ddpm_jax.models.condition import Condition, uninformed
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.guidance import classifier_free
from ddpm_jax.samplers.registry import make_sampler

GOAL = 2.05
SCALE = 3.0


def make_calls(
    config: ConfigDict, *, steps: int, batch_size: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns {name: call}, each drawing noise, walking the chain and fetching uint8 images."""
    model = build(config)
    num_classes = model.conditioning.num_classes
    if not num_classes:
        raise SystemExit(
            "This config has no classes to guide to: give one with condition.num_classes."
        )
    params = Weights(jax.jit(model.init_params)(base_key(0)))
    sampler = make_sampler("ddim", model.chain, steps=steps, spacing="trailing")
    condition = Condition(label=np.arange(batch_size, dtype=np.int32) % num_classes)

    def unguided(params, schedule, condition):
        return model.conditional_denoiser(params, schedule).given(condition)

    def guided(params, schedule, condition):
        conditional = model.conditional_denoiser(params, schedule)
        null = uninformed(condition, num_classes)
        return classifier_free(conditional, condition, null, scale=SCALE)

    def call(make_denoiser):
        generate = make_generate(make_denoiser, sampler, model.image_shape)
        return lambda: generate(params, base_key(0), np.arange(batch_size), inputs=condition).images

    return {"unguided": call(unguided), "guided": call(guided)}


def measure(config: ConfigDict, *, steps: int, batch_size: int, repeats: int) -> dict:
    """Returns the result as a dict."""
    calls = make_calls(config, steps=steps, batch_size=batch_size)
    for call in calls.values():
        call()  # compiles
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    return {
        **setting(),
        "steps": steps,
        "batch_size": batch_size,
        **{f"seconds_per_{name}_call": spread([turn[name] for turn in turns]) for name in calls},
        "ratio": spread([turn["guided"] / turn["unguided"] for turn in turns]),
        "highest_ratio_wanted": GOAL,
    }


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="digits_cond.py")
    made.add_argument("--steps", type=int, default=50)
    made.add_argument("--batch_size", type=int, default=16)
    made.add_argument("--repeats", type=int, default=9)
    arguments, config = parse(made, argv)
    result = measure(
        config, steps=arguments.steps, batch_size=arguments.batch_size, repeats=arguments.repeats
    )
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
