"""A whole sampling call of a config's network: images a second, share of the device's peak, memory,
compilation.

    python benchmarks/sampling.py [--config configs/ddpm_cifar10.py] [--sampler ddim] [--steps 50]
    [--batch_size 128]

What `sample.py` does: noise, chain, clipping, uint8 images on the host, by random weights, whose
values cost nothing. `sampling_vs_pytorch.py` compares with another program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from measuring import (
    achieved,
    compiled,
    parse,
    parser,
    peak_bytes,
    report,
    seconds,
    setting,
    spread,
)

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.generation.generating import make_generate
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.registry import make_sampler


def measure(config, *, sampler: str, steps: int, batch_size: int, rounds: int) -> dict:
    """Returns the result as a dict."""
    model = build(config)
    params = jax.jit(model.init_params)(base_key(0))
    walk = make_sampler(sampler, model.chain, steps=steps)
    generate = make_generate(model.denoiser, walk, model.shape, decode=model.decode)
    call = functools.partial(generate, Weights(params), base_key(0), np.arange(batch_size))
    first = seconds(call)
    times = [seconds(call) for _ in range(rounds)]
    median = spread(times)["median"]
    share = batch_size // jax.device_count()
    x, t = jnp.zeros((share, *model.image_shape)), jnp.zeros((share,))
    # The chain is a loop whose length JAX does not count: its FLOP are those of the network, once a
    # step.
    network = compiled(
        jax.jit(lambda p, x, t: model.network.apply({"params": p}, x, t)), params, x, t
    )
    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {
        **setting(),
        "sampler": sampler,
        "steps": steps,
        "batch_size": batch_size,
        "dtype": config.model.dtype,
        "seconds_per_call": spread(times),
        "images_per_second": batch_size / median,
        "evaluations_per_second": batch_size * steps / median,
        **achieved(network.flops * steps, median, config.model.dtype),
        "peak_bytes": peak_bytes(params_bytes + network.temporary_bytes),
        "compile_seconds": first - median,
    }


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="ddpm_cifar10.py")
    made.add_argument("--sampler", default="ddim", help="one that asks the network once a step")
    made.add_argument("--steps", type=int, default=50)
    made.add_argument("--batch_size", type=int, default=128)
    made.add_argument("--rounds", type=int, default=5)
    arguments, config = parse(made, argv)
    result = measure(
        config,
        sampler=arguments.sampler,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        rounds=arguments.rounds,
    )
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
