"""Our side of a comparison with PyTorch: batch, training step, how far two outputs may be apart.

Theirs is in `pytorch_peers.py`. PyTorch is not imported here, so that ours can be measured without.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key

LEARNING_RATE = 2e-4
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of `relative_difference`


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch as NumPy arrays: images and the noise in them [B, H, W, C], times [B]."""

    x: np.ndarray
    t: np.ndarray
    eps: np.ndarray

    @classmethod
    def random(cls, batch_size: int, resolution: int, channels: int = 3) -> "Batch":
        rng = np.random.default_rng(0)
        shape = (2, batch_size, resolution, resolution, channels)
        x, eps = rng.normal(size=shape).astype(np.float32)
        return cls(x, rng.integers(0, 1000, batch_size).astype(np.int32), eps)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the root mean square of ours - theirs, relative to that of theirs."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))


def our_training_step(
    network: UNet | DiT, params: dict, batch: Batch, condition: Condition | None = None
) -> Callable[[], jax.Array]:
    """Returns a function that does one step of training on the batch and returns its loss.

    A call does not wait for the device.
    """
    update, state, examples = our_update(network, params, batch, condition)

    def step() -> jax.Array:
        nonlocal state
        state, loss = update(state, *examples)
        return loss

    return step


def our_update(
    network: UNet | DiT, params: dict, batch: Batch, condition: Condition | None = None
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Returns update(state, *examples) -> (state, loss), jitted, with a state and examples for it.

    Mean squared error, gradients, Adam. The state's buffers are donated.
    """
    optimizer, loss_fn = optax.adam(LEARNING_RATE), mean_squared_error(network)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, *examples):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, *examples)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = jax.tree.map(jnp.array, params)
    dropout_keys = jax.random.split(base_key(0), len(batch.x))
    examples = *map(jnp.asarray, (batch.x, batch.t, batch.eps)), condition, dropout_keys
    return update, (params, optimizer.init(params)), examples


def mean_squared_error(network: UNet | DiT) -> Callable[..., jax.Array]:
    """Returns loss(params, x, t, eps, condition, dropout_keys), a scalar."""

    def loss(params, x, t, eps, condition, dropout_keys):
        eps_hat = network.apply({"params": params}, x, t, condition, dropout_keys=dropout_keys)
        return jnp.mean(jnp.square(eps_hat - eps))

    return loss
