"""The whole training step of a config: images a second, share of the device's peak, memory,
compilation.

    python benchmarks/train_step.py [--config configs/ddpm_cifar10.py]
    [--config.train.batch_size=512]
        [--config.model.dtype=bfloat16] [--config.train.steps_per_call=10]
        [--config.model.remat=products]

Flip, draws, diffusion, network with dropout, loss, gradients, average over the devices, clipping,
Adam and EMA, on random images that lie on the device. Calls follow each other as in training: a
round of `--calls` is waited for once.
"""

import jax
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

from ddpm_jax.distributed.pmap import several
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.trainer import build_training, check_batch, init_state
from ddpm_jax.randomness import base_key


def measure(config, *, calls: int, rounds: int) -> dict:
    """Returns the result as a dict."""
    check_batch(config)
    model = build(config)
    training = build_training(model)
    parallelism, per_call, size = (
        training.parallelism,
        config.train.steps_per_call,
        config.train.batch_size,
    )
    step = training.train_step if per_call == 1 else several(training.train_step)
    state, key = parallelism.place(init_state(model, training)), base_key(config.seed)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    batch = parallelism.to_devices([random_batch(size, model.image_shape)] * per_call)
    program = compiled(parallelism.map_step(step), state, batch, key)

    def one_round():
        nonlocal state
        for _ in range(calls):
            state, metrics = program.call(state, batch, key)
        jax.block_until_ready((state, metrics))

    one_round()
    steps = calls * per_call
    times = [seconds(one_round) / steps for _ in range(rounds)]
    # The loop's body is counted once, which is one step; a mapped program's FLOP are those of one
    # device.
    rates = achieved(program.flops, spread(times)["median"], config.model.dtype)
    return {
        **setting(),
        "batch_size": size,
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "parallel": config.parallel,
        "steps_per_call": per_call,
        "seconds_per_step": spread(times),
        "images_per_second": size / spread(times)["median"],
        "flop_per_step_and_device": program.flops,
        **rates,
        "peak_bytes": peak_bytes(state_bytes + program.temporary_bytes),
        "temporary_bytes": program.temporary_bytes,
        "compile_seconds": program.compile_seconds,
    }


def random_batch(size: int, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """uint8 [B, H, W, C] and labels."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, *shape), np.uint8),
        "label": np.zeros(size, np.int32),
    }


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="ddpm_cifar10.py")
    made.add_argument("--calls", type=int, default=10, help="in a round")
    made.add_argument("--rounds", type=int, default=5)
    arguments, config = parse(made, argv)
    result = measure(config, calls=arguments.calls, rounds=arguments.rounds)
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
