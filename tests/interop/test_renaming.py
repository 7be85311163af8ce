"""What the formats share: the shapes of a network's parameters."""

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.interop.renaming import shapes_of
from ddpm_jax.models.unet import UNet

TRACED = []


class Product(nn.Module):
    """A matrix product that counts how often it is traced."""

    features: int

    @nn.compact
    def __call__(self, x):
        TRACED.append(x.shape)
        return nn.Dense(self.features, use_bias=False)(x)


def test_equal_networks_are_traced_once_for_inputs_of_equal_shapes():
    kernel = ("Dense_0", "kernel")
    found = shapes_of(Product(3), jnp.zeros((2, 5)))
    assert found == {kernel: (5, 3)}
    del found[kernel]  # it is the caller's
    assert shapes_of(Product(3), jnp.ones((2, 5))) == {kernel: (5, 3)}
    assert TRACED == [(2, 5)]
    assert shapes_of(Product(4), jnp.zeros((2, 5))) == {kernel: (5, 4)}
    assert shapes_of(Product(3), jnp.zeros((2, 6))) == {kernel: (6, 3)}
    assert TRACED == [(2, 5), (2, 5), (2, 6)]


def test_a_network_with_lists_for_fields_has_the_same_shapes():
    image, time = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1,))
    fields = {"resolution": 8, "ch": 32, "num_res_blocks": 1}
    expected = shapes_of(UNet(**fields, ch_mult=(1, 2), attn_resolutions=(4,)), image, time)
    assert shapes_of(UNet(**fields, ch_mult=[1, 2], attn_resolutions=[4]), image, time) == expected
