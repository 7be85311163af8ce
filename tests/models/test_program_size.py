"""The size of the networks' programs: compile time grows with it, and seconds do not repeat.

Instructions of the module that JAX hands to XLA for a CPU are counted, at abstract shapes: nothing
is computed or compiled. The limits are a tenth above what jax 0.10 gives. Raise one only for a
change that is worth the time that every user then waits for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet

SMALL_VAE = Autoencoder(resolution=64, ch=64, ch_mult=(1, 2, 2), num_res_blocks=1)


def instructions(function: Callable, *arguments: jax.ShapeDtypeStruct) -> int:
    program = jax.jit(function).lower(*arguments).as_text()
    return sum(" = " in line for line in program.splitlines())


def inputs(side: int, channels: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((8, side, side, channels), jnp.float32)
    return images, jax.ShapeDtypeStruct((8,), jnp.int32)


@pytest.mark.parametrize(
    ("network", "arguments", "forward", "gradient"),
    [
        pytest.param(UNet(), inputs(32, 3), 4850, 12600, marks=pytest.mark.full, id="cifar10_unet"),
        pytest.param(
            DiT(out_channels=4), inputs(32, 4), 1930, 4850, marks=pytest.mark.full, id="dit"
        ),
        pytest.param(
            SMALL_VAE, inputs(64, 3)[:1], 2720, 6490, marks=pytest.mark.full, id="small_vae"
        ),
    ],
)
def test_programs_do_not_grow(network, arguments, forward, gradient):
    variables = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    assert instructions(network.apply, variables, *arguments) <= forward

    def loss(variables, *arguments):
        return jnp.mean(jnp.square(network.apply(variables, *arguments)))

    assert instructions(jax.grad(loss), variables, *arguments) <= gradient
