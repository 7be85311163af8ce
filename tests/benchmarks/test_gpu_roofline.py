"""The reading of lowered programs: FLOP and bytes by hand, and what the networks ask of a GPU."""

import gpu_roofline
import jax
import jax.numpy as jnp
import pytest
from gpu_parts.networks import measured
from lowered_program import read

HALF = jnp.bfloat16


def lowered(function, *arrays):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays]
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))


def test_flop_and_bytes_of_a_convolution_and_a_product_are_those_by_hand():
    def network(x, kernel, bias, weights):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y + bias[None, None, None, :]) @ weights

    shapes = ((2, 10, 10, 8), HALF), ((3, 3, 8, 16), HALF), ((16,), HALF), ((16, 4), HALF)
    program = lowered(network, *shapes)
    convolution, fusion, product = read(program).kernels
    assert (convolution.kind, convolution.form) == ("convolution", "forward")
    assert convolution.flops == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 8)
    assert convolution.bytes == 2 * (2 * 10 * 10 * 8 + 3 * 3 * 8 * 16 + 2 * 8 * 8 * 16)
    assert fusion.bytes == 2 * (2 * 8 * 8 * 16 + 16 + 2 * 8 * 8 * 16)
    assert (product.flops, product.form) == (2 * (2 * 8 * 8 * 4) * 16, "plain")
    # which counts the sums and maxima too, one for each element
    assert program.cost_analysis()["flops"] == pytest.approx(
        convolution.flops + product.flops, rel=0.02
    )


def test_a_sum_that_several_kernels_read_is_stored_once():
    def network(x, h):
        y = x + h
        return jnp.sum(y, axis=1), jnp.sum(y * y, axis=1)

    size = 64 * 128 * 4
    kernels = read(lowered(network, ((64, 128), "float32"), ((64, 128), "float32"))).kernels
    assert [kernel.kind for kernel in kernels] == ["fusion", "reduce", "reduce"]
    assert kernels[0].bytes == 3 * size
    assert [kernel.bytes for kernel in kernels[1:]] == [size + 64 * 4] * 2


def test_what_costs_on_a_gpu_is_seen():
    def function(x):
        def body(carry, _):
            return carry @ x, None

        y, _ = jax.lax.scan(body, x, None, length=3)
        y = jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), y)
        return jnp.transpose(y)[jnp.argsort(y[0])]

    # for this machine: a callback to Python cannot be lowered for a device that is not there
    found = gpu_roofline.costs(read(jax.jit(function).lower(jnp.ones((256, 256)))))
    assert (found.single_products, found.single_share) == (1, 1.0)
    assert (found.loops, found.host_calls) == (1, 1)
    assert found.transposed == 1
    assert found.looked_up >= 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "single"),
    [("unet", {"conv_out"}), ("dit", {"modulation_out", "patch_out"})],
)
def test_the_networks_ask_nothing_of_a_gpu_that_it_is_slow_at(name, single):
    """Products in bfloat16 but for the last layer, no loop, no host, no 64 bits."""
    program = read(gpu_roofline.lowered(measured(name, small=True), 4, training=True))
    costs = gpu_roofline.costs(program)
    assert (costs.other_convolutions, costs.host_calls, costs.loops, costs.wide) == (0, 0, 0, 0)
    # but the gradients of attention that is not cuDNN's, at toy size
    layers = {k.layer for k in program.kernels if "f32" in k.dtypes and k.form != "batched"}
    assert {layer.rpartition("/")[2] for layer in layers} == single
    times = [gpu_roofline.prediction(program, d, 4) for d in gpu_roofline.DEVICES]
    assert times[0]["milliseconds"] > times[1]["milliseconds"] > 0
