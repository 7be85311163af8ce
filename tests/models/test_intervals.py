"""Networks that may be given an earlier time besides that of x_t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.dit import DiT
from ddpm_jax.models.unet import UNet

SIZES = {
    UNet: {
        "ch": 8,
        "ch_mult": (1,),
        "num_res_blocks": 1,
        "norm_groups": 2,
        "attn_resolutions": (),
        "resolution": 4,
    },
    DiT: {"hidden_size": 16, "depth": 1, "num_heads": 2},
}
T = jnp.array([0.2, 0.9])


@pytest.mark.parametrize("kind", SIZES)
def test_an_interval_of_length_0_is_one_time_and_the_rest_of_the_network_is_as_ever(kind):
    plain, network = (kind(**SIZES[kind], out_channels=1, interval=i) for i in (False, True))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(1), x, T)["params"]
    without = jax.eval_shape(plain.init, jax.random.key(1), x, T)["params"]
    assert set(shapes) - set(without) == {"interval_dense0", "interval_dense1"}
    # random, since a new network returns 0
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def apply(t):
        return network.apply({"params": params}, x, t)

    np.testing.assert_allclose(apply(T), apply(jnp.stack([T, T], axis=1)), rtol=1e-6)
    earlier = apply(jnp.stack([T, T - 0.1], axis=1))
    assert np.abs(apply(T) - earlier).max() > 1e-4
