"""The whole U-Net: sizes, gradients, shapes, precision, recomputation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.models.trunk import ResBlock
from ddpm_jax.models.unet import UNet

from .conftest import equations

SMALL = UNet(
    resolution=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0
)
T = jnp.array([0, 999])


@functools.partial(jax.jit, static_argnums=0)
def apply(unet, params, x, t=T, keys=None):
    return unet.apply(params, x, t, dropout_keys=keys)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(unet, params, x, keys=None):
    return jax.value_and_grad(lambda p: jnp.mean(jnp.square(apply(unet, p, x, T, keys))))(params)


def image(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def random_params(unet, x):
    """Return parameters none of which is zero, at the published scale so that nothing saturates."""
    shapes = flatten_dict(jax.eval_shape(unet.init, jax.random.key(0), x, T))
    rng = np.random.default_rng(7)

    def draw(path, shape):
        deviation = np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1
        return np.float32(deviation * rng.normal(size=shape) + (path[-1] == "scale"))

    return unflatten_dict({path: draw(path, leaf.shape) for path, leaf in shapes.items()})


@pytest.fixture(scope="module")
def x():
    return image(2, 8, 8, 3)


@pytest.fixture(scope="module")
def new(x):
    return jax.jit(SMALL.init)(jax.random.key(0), x, T)


@pytest.fixture(scope="module")
def params(x):
    return random_params(SMALL, x)


@pytest.mark.parametrize(
    ("unet", "size", "count"),
    [
        (UNet(), 32, 35_746_307),
        (UNet(resolution=256, ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0), 256, 113_673_219),
    ],
)
def test_published_sizes_have_the_original_number_of_parameters(unet, size, count):
    args = (
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *args)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.full
def test_a_new_network_outputs_zero(new, x):
    # conv_out's weights are at most sqrt(3e-10 / fan) ~ 1e-6, its inputs of order 1 and 288 in
    # number.
    assert jnp.abs(apply(SMALL, new, x)).max() < 1e-3


@pytest.mark.full
def test_a_new_residual_block_is_the_identity(x):
    h, temb = image(2, 8, 8, 32), image(2, 128, seed=2)
    block = ResBlock(32)
    params = block.init(jax.random.key(0), h, temb, None)
    np.testing.assert_allclose(block.apply(params, h, temb, None), h, atol=1e-3)


@pytest.mark.full
def test_initial_weights_are_uniform_with_variance_one_over_the_mean_fan(new):
    params = flatten_dict(new["params"])
    zeroed = {"conv2", "proj_out", "conv_out"}
    kernels = {path: value for path, value in params.items() if path[-1] == "kernel"}
    assert any(path[-2] in zeroed for path in kernels)
    for path, kernel in kernels.items():
        pixels = np.prod(kernel.shape[:-2], dtype=int)
        scale = 1e-10 if path[-2] in zeroed else 1.0
        variance = scale / (pixels * (kernel.shape[-2] + kernel.shape[-1]) / 2)
        # The variance of n uniform draws has relative standard deviation sqrt(0.8 / n); allow five
        # of them.
        np.testing.assert_allclose(
            kernel.var(), variance, rtol=5 * np.sqrt(0.8 / kernel.size), err_msg=str(path)
        )
        assert jnp.abs(kernel).max() <= np.sqrt(3 * variance) * (1 + 1e-6)
    for path, value in params.items():
        if path[-1] != "kernel":
            assert jnp.all(value == (1.0 if path[-1] == "scale" else 0.0)), path


@pytest.mark.full
@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_gradients_reach_every_parameter(x, scale_shift_norm):
    unet = SMALL.clone(scale_shift_norm=scale_shift_norm)
    _, grads = loss_and_grads(unet, random_params(unet, x), x)
    for path, grad in flatten_dict(grads["params"]).items():
        assert jnp.isfinite(grad).all(), path
        # adds the same to every logit of a row, which a softmax does not see
        if path[-2:] != ("k", "bias"):
            assert jnp.abs(grad).max() > 0, path


@pytest.mark.full
def test_every_output_pixel_depends_on_every_input_pixel_and_on_the_time(params, x):
    grad = jax.jit(jax.grad(lambda x: apply(SMALL, params, x)[0, 0, 0, 0]))(x)
    assert (jnp.abs(grad[0]).max(axis=-1) > 0).all()
    assert (grad[1] == 0).all(), "an example must not see its neighbour in the batch"
    assert jnp.abs(apply(SMALL, params, x) - apply(SMALL, params, x, T + 1)).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 8, 16, 3), (2, 12, 4, 3), (2, 2, 2, 3)])
def test_one_set_of_parameters_serves_every_height_and_width(params, shape):
    assert apply(SMALL, params, image(*shape)).shape == shape


@pytest.mark.slow
def test_transposing_image_and_kernels_transposes_the_output_of_a_non_square_image(params):
    swapped = jax.tree.map(lambda p: p.swapaxes(0, 1) if p.ndim == 4 else p, params)
    x = image(2, 8, 16, 3)
    transposed = apply(SMALL, swapped, x.swapaxes(1, 2)).swapaxes(1, 2)
    # sums in another order
    np.testing.assert_allclose(transposed, apply(SMALL, params, x), atol=2e-4)


@pytest.mark.full
def test_grey_images_and_a_learned_variance_change_only_the_first_and_last_layer(x):
    unet = SMALL.clone(out_channels=2)
    grey = random_params(unet, x[..., :1])
    assert apply(unet, grey, x[..., :1]).shape == (2, 8, 8, 2)
    shapes = jax.tree.map(jnp.shape, flatten_dict(grey["params"]))
    colour = jax.tree.map(jnp.shape, flatten_dict(random_params(SMALL, x)["params"]))
    assert {path[0] for path in shapes if shapes[path] != colour[path]} == {"conv_in", "conv_out"}


@pytest.mark.slow
def test_integer_and_real_time_agree_and_fractions_count(params, x):
    np.testing.assert_array_equal(
        apply(SMALL, params, x), apply(SMALL, params, x, T.astype(jnp.float32))
    )
    assert jnp.abs(apply(SMALL, params, x, T + 0.25) - apply(SMALL, params, x)).max() > 1e-5


@pytest.mark.full
def test_heads_are_disjoint_slices_of_the_channels(params, x):
    """Two heads differ from one, and permuting whole heads consistently changes nothing."""
    two = SMALL.clone(num_heads=2)
    y = apply(two, params, x)
    assert jnp.abs(y - apply(SMALL, params, x)).max() > 1e-4
    swap = np.r_[32:64, 0:32]

    def permute(path, value):
        if path[-2] in {"q", "k", "v"}:
            return value[..., swap]
        return value[swap] if path[-2] == "proj_out" and path[-1] == "kernel" else value

    flat = {path: permute(path, value) for path, value in flatten_dict(params["params"]).items()}
    np.testing.assert_allclose(apply(two, {"params": unflatten_dict(flat)}, x), y, atol=1e-4)


@pytest.mark.full
def test_bfloat16_is_near_float32_with_float32_parameters_and_output(params, x):
    unet = SMALL.clone(dtype=jnp.bfloat16)
    y, expected = apply(unet, params, x), apply(SMALL, params, x)
    assert y.dtype == jnp.float32
    initial = jax.eval_shape(unet.init, jax.random.key(0), x, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits: 0.4 % an operation, some 20 operations deep, errors of random sign.
    error = jnp.sqrt(jnp.mean(jnp.square(y - expected)) / jnp.mean(jnp.square(expected)))
    assert 1e-4 < error < 0.05


@pytest.mark.full
def test_in_bfloat16_every_mean_variance_and_softmax_is_float32(params, x):
    jaxpr = jax.make_jaxpr(SMALL.clone(dtype=jnp.bfloat16).apply)(params, x, T)
    dtypes = {
        "exp": set(),
        "rsqrt": set(),
        "reduce_sum": set(),
        "reduce_max": set(),
        "conv_general_dilated": set(),
    }
    for eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name in dtypes:
            dtypes[eqn.primitive.name].add(str(eqn.invars[0].aval.dtype))
    assert "bfloat16" in dtypes.pop("conv_general_dilated")
    assert dtypes == {name: {"float32"} for name in dtypes}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_recomputation_changes_neither_output_nor_gradients(params, x, remat):
    unet = SMALL.clone(dropout=0.3)
    keys = jax.random.split(jax.random.key(3), 2)

    value, grads = loss_and_grads(unet, params, x, keys)
    value_remat, grads_remat = loss_and_grads(unet.clone(remat=remat), params, x, keys)
    np.testing.assert_allclose(value_remat, value, rtol=1e-6)
    for (path, grad), ours in zip(
        flatten_dict(grads).items(), flatten_dict(grads_remat).values(), strict=True
    ):
        np.testing.assert_allclose(
            ours, grad, atol=1e-5 * max(1.0, float(jnp.abs(grad).max())), err_msg=str(path)
        )


@pytest.mark.full
def test_recomputation_is_in_the_backward_pass(params, x):
    def count(unet):
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(unet.apply(p, x, T))))(params)
        return sum(
            eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in equations(jaxpr.jaxpr)
        )

    assert count(SMALL) == 0
    assert count(SMALL.clone(remat="blocks")) >= 7 + 4  # its residual blocks and its attentions


@pytest.mark.slow
def test_recomputing_products_keeps_less_than_half_and_blocks_less_than_a_quarter_of_the_memory():
    unet = SMALL.clone(ch_mult=(1,), attn_resolutions=(), dropout=0.3)
    x, t, keys = jnp.zeros((8, 8, 8, 3)), jnp.zeros((8,)), jax.random.split(jax.random.key(3), 8)
    params = jax.eval_shape(unet.init, jax.random.key(0), x, t)

    def kept(remat):
        """Return the bytes stored for the backward pass, parameters not counted."""
        network = unet.clone(remat=remat)
        forward = jax.jit(lambda p: jax.vjp(lambda p: network.apply(p, x, t, dropout_keys=keys), p))
        compiled = forward.lower(params).compile({"xla_backend_optimization_level": 0})
        return compiled.memory_analysis().output_size_in_bytes - sum(
            4 * leaf.size for leaf in jax.tree.leaves(params)
        )

    assert kept("products") < kept("none") / 2
    assert 0 < kept("blocks") < kept("none") / 4


@pytest.mark.slow
def test_recomputing_products_multiplies_little_again_and_blocks_a_forward_pass(params, x):
    def flops(function):
        return jax.jit(function).lower(params).cost_analysis()["flops"]

    def step(remat):
        return flops(
            jax.grad(lambda p: jnp.mean(jnp.square(SMALL.clone(remat=remat).apply(p, x, T))))
        )

    forward = flops(lambda p: SMALL.apply(p, x, T))
    assert step("products") - step("none") < 0.1 * forward
    assert 0.5 * forward < step("blocks") - step("none") < forward
