"""The patch discriminator: its structure, a PyTorch one with the same weights, refusals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models.discriminator import Discriminator, check_discriminator
from ddpm_jax.models.layers import GroupNorm

SMALL = Discriminator(ch=16, num_layers=2)


@functools.cache
def param_shapes(model, channels=3):
    side = model.smallest_side
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))[
        "params"
    ]


@functools.cache
def random_params(model):
    """Return parameters none of which is zero, with kernels so large that every layer matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), param_shapes(model)
    )


def test_the_published_network_has_as_many_parameters():
    """2.769 M, as the code of pix2pix prints for its 70x70 network.

    That network sees the input next to the output: six channels.
    """
    count = sum(
        np.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(Discriminator(), channels=6))
    )
    assert count == 2_768_705


@pytest.mark.parametrize(("num_layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_published_patch(num_layers, field):
    """Isola et al. 2017, appendix 6.1.2, by the gradient of one logit.

    Normalisation, which sees all pixels, is left out.
    """
    model = Discriminator(ch=16, num_layers=num_layers)
    params, size = random_params(model), field + 2 * 2**num_layers

    def logit(x):
        with nn.intercept_methods(
            lambda call, args, _, context: args[0] if _is_norm(context) else call(*args)
        ):
            logits = model.apply({"params": params}, x)
        return logits[0, logits.shape[1] // 2, logits.shape[2] // 2, 0]

    seen = np.any(
        np.asarray(jax.jit(jax.grad(logit))(jnp.ones((1, size, size, 3)))) != 0, axis=(0, 3)
    )
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (field, field)


def _is_norm(context):
    return isinstance(context.module, GroupNorm)


@pytest.mark.parametrize(("model", "size"), [(SMALL, (16, 24)), (Discriminator(ch=16), (24, 33))])
def test_the_logits_are_those_of_pytorch(model, size):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install -e '.[parity]'"
    )
    layers, channels, width = [], 3, model.ch
    for i in range(model.num_layers + 1):
        stride = 2 if i < model.num_layers else 1
        layers.append(torch.nn.Conv2d(channels, width, 4, stride, 1, bias=i == 0))
        if i:
            layers.append(torch.nn.GroupNorm(32, width, eps=1e-6))
        layers.append(torch.nn.LeakyReLU(0.2))
        channels, width = width, min(2 * width, 8 * model.ch)
    network = torch.nn.Sequential(*layers, torch.nn.Conv2d(channels, 1, 4, 1, 1))
    params = random_params(model)
    ours = [
        value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        for name in [
            *(f"{kind}_{i}" for i in range(model.num_layers + 1) for kind in ("conv", "norm")),
            "conv_out",
        ]
        # PyTorch: bias last
        for _, value in sorted(params.get(name, {}).items(), key=lambda leaf: leaf[0] == "bias")
    ]
    with torch.no_grad():
        for theirs, value in zip(network.parameters(), ours, strict=True):
            theirs.copy_(torch.tensor(value))
    x = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    logits = jax.jit(model.apply)({"params": params}, x)
    assert np.ptp(expected) > 0.1
    # float32 sums in another order, a few layers deep
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_is_said_of_an_image_does_not_depend_on_those_beside_it():
    x = np.random.default_rng(1).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    together, alone = (
        jax.jit(SMALL.apply)({"params": random_params(SMALL)}, images) for images in (x, x[1:2])
    )
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_weights_start_as_published():
    params = flatten_dict(
        jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    )
    for path, leaf in params.items():
        if path[-1] == "kernel":
            assert abs(np.mean(leaf)) < 5 * 0.02 / np.sqrt(leaf.size)  # five standard errors
            np.testing.assert_allclose(np.std(leaf), 0.02, rtol=5 / np.sqrt(2 * leaf.size))
        else:
            np.testing.assert_array_equal(leaf, float(path[-1] == "scale"))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_image_gives_one_logit(num_layers):
    model = Discriminator(ch=16, num_layers=num_layers)
    check_discriminator(model, model.smallest_side, model.smallest_side)
    for side, logits in ((model.smallest_side, 1), (model.smallest_side - 1, 0)):
        x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        try:
            shape = jax.eval_shape(model.apply, {"params": param_shapes(model)}, x).shape
        except (ValueError, TypeError, ZeroDivisionError):  # a side that is none
            shape = (1, 0, 0, 1)
        assert shape == (1, logits, logits, 1)


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({"ch": 20}, 64, r"20 channels has 40 in its second layer.*multiple of 16"),
        ({"num_layers": 0}, 64, r"num_layers is 0: give a whole number of at least 1"),
        ({}, 16, r"3 layers needs images of at least 24x24 pixels, but these are 16x16"),
    ],
)
def test_a_discriminator_that_cannot_be_built_is_refused(fields, size, words):
    with pytest.raises(UsageError, match=words):
        check_discriminator(Discriminator(**fields), size, size)
