"""The pooling in which the FID's Inception differs from others, and what its layers are called."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.inception import DIMS, NUM_CLASSES, BlockE, Inception, _average_pool

X = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)


def windows(x, reduce):
    """reduce(the 3x3 pixels around each that are within the image), pixel by pixel."""
    _, height, width, _ = x.shape
    rows = [
        [
            reduce(x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2], axis=(1, 2))
            for j in range(width)
        ]
        for i in range(height)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def test_averages_leave_out_the_padding():
    np.testing.assert_allclose(_average_pool(jnp.asarray(X)), windows(X, np.mean), atol=1e-6)


def test_the_last_block_takes_maxima_and_the_one_before_averages():
    for kind, reduce in (("average", np.mean), ("max", np.max)):
        block = BlockE(pool=kind)
        shapes = jax.eval_shape(block.init, jax.random.key(0), X)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["params"])
        kernel = params["branch_pool"]["kernel"]
        kernel[0, 0, :, :3] = np.eye(3)  # the pooled channels come out unchanged
        params["branch_pool"]["bias"][:] = 10.0  # above the ReLU
        found = block.apply({"params": params}, X)[..., -kernel.shape[-1] :][..., :3]
        np.testing.assert_allclose(found, windows(X, reduce) + 10, atol=1e-5)


def test_its_layers_have_the_sizes_that_are_their_names():
    image = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    found, _ = jax.eval_shape(Inception().init_with_output, jax.random.key(0), image)
    sizes = {name: getattr(found, name).shape for name in DIMS}
    assert sizes == {name: (2, dims) for name, dims in DIMS.items()}
    assert set(DIMS.values()) == {64, 192, 768, 2048}
    assert found.logits.shape == (2, NUM_CLASSES)
