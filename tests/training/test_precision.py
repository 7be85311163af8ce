"""Mixed precision: the network computes in bfloat16, and everything that sums, averages or
remembers is float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.distributed.pmap import map_step, replicate, to_devices
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step

# 1/400 of the distance of neighbouring bfloat16 numbers at the size of a normalisation's scale, 1
RATE = 1e-5
STEPS = 5
UNET = UNet(
    resolution=8, out_channels=1, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(8,)
)


@pytest.fixture(scope="module")
def params():
    """No layer of which is nearly zero, as some of a new network are."""
    shapes = jax.eval_shape(UNET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,)))[
        "params"
    ]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.1
        return np.float32(deviation * rng.normal(size=leaf.shape) + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def batch():
    return {"image": np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1), np.uint8)}


@pytest.fixture
def start(network_objective, params):
    """start(dtype, optimizer): (state, mapped train step) of a network that computes in `dtype`."""

    def make(dtype, optimizer):
        objective = network_objective(UNET.clone(dtype=dtype), num_timesteps=100)
        step = make_train_step(objective, optimizer, optax.constant_schedule(RATE), StepOptions())
        return replicate(create(jax.tree.map(jnp.array, params), optimizer, objective)), map_step(
            step
        )

    return make


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_loss_and_gradient_in_bfloat16_are_those_of_float32_to_a_few_hundredths(
    start, params, batch
):
    # SGD at rate 1 subtracts the gradient itself.
    losses, gradients = {}, {}
    for dtype in (jnp.float32, jnp.bfloat16):
        state, step = start(dtype, optax.sgd(1.0))
        state, metrics = step(state, to_devices([batch]), base_key(0))
        losses[dtype], gradients[dtype] = float(metrics["loss"]), flat(params) - flat(state.params)
    full, half = gradients[jnp.float32], gradients[jnp.bfloat16]
    # bfloat16 keeps 8 bits: 0.2 % an operation, some 20 operations deep forward and 20 back, errors
    # of random sign. Over the batch the loss averages most of that away.
    assert abs(losses[jnp.bfloat16] / losses[jnp.float32] - 1) < 0.01
    assert 1e-3 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.1


@pytest.mark.slow
def test_updates_too_small_for_bfloat16_are_kept_in_the_float32_weights_and_their_average(
    start, params, batch
):
    optimizer = optax.adam(RATE)
    state, step = start(jnp.bfloat16, optimizer)
    for _ in range(STEPS):
        state, metrics = step(state, to_devices([batch]), base_key(0))
    leaves = jax.tree.leaves((state.params, state.ema_params, state.opt_state))
    assert {str(leaf.dtype) for leaf in leaves if leaf.ndim} == {"float32"}
    assert {str(metrics[name].dtype) for name in ("loss", "grad_norm")} == {"float32"}
    # Adam moves a weight by about the rate a step, in the direction of its gradient.
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(jnp.subtract, state.params, params)
    ):
        assert 0 < np.abs(leaf).max() <= 1.01 * STEPS * RATE, path
    norm = state.params["norm_out"]["scale"] - params["norm_out"]["scale"]
    assert np.mean(np.abs(norm) > RATE / 2) > 0.9, (
        "weights near 1, where bfloat16 would lose every update"
    )
