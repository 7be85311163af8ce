"""Random weights of the FID's Inception under the names of its files, drawn by a seed."""

import zlib

import numpy as np

from ddpm_jax.interop.inception_weights import inception_shapes


def random_state(seed=0):
    """Return the state dict of a network whose features neither grow nor vanish.

    The draws of a tensor depend on its name and the seed only.
    """
    state = {}
    for path, shape in inception_shapes().items():
        if path[-1] != "kernel":
            continue
        module = ".".join(path[:-1]).replace("conv_", "Conv2d_").replace("mixed_", "Mixed_")
        rng = np.random.default_rng([seed, zlib.crc32(module.encode())])
        if module == "fc":
            state["fc.weight"] = rng.normal(0, 0.02, (1008, 2048))
            state["fc.bias"] = rng.normal(0, 1, 1008)
            continue
        height, width, inputs, outputs = shape
        deviation = np.sqrt(2 / (height * width * inputs))
        state[f"{module}.conv.weight"] = rng.normal(0, deviation, (outputs, inputs, height, width))
        state[f"{module}.bn.weight"] = rng.uniform(0.8, 1.2, outputs)
        state[f"{module}.bn.bias"] = rng.normal(0, 0.1, outputs)
        state[f"{module}.bn.running_mean"] = rng.normal(0, 0.1, outputs)
        state[f"{module}.bn.running_var"] = rng.uniform(0.8, 1.2, outputs)
    return {name: value.astype(np.float32) for name, value in state.items()} | {
        f"{name.removesuffix('.weight')}.num_batches_tracked": np.array(1)
        for name in state
        if name.endswith("bn.weight")
    }
