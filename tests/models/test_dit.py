"""The Diffusion Transformer: sizes, positions, its equations in float64, initialisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition, null_condition
from ddpm_jax.models.dit import (
    SIZES,
    DiT,
    DiTBlock,
    check_dit,
    patchify,
    position_embedding,
    unpatchify,
)

from .conftest import equations

K = 3
SMALL = DiT(hidden_size=32, depth=2, num_heads=2, num_classes=K, out_channels=5)
T = jnp.array([0, 999])
LABELS = Condition(label=jnp.array([1, K]))
X = jax.random.normal(jax.random.key(1), (2, 8, 4, 3))


@functools.partial(jax.jit, static_argnums=0)
def apply(dit, params, x=X, t=T, condition=LABELS, keys=None):
    return dit.apply({"params": params}, x, t, condition, dropout_keys=keys)


def random_params(dit, x=X):
    """Return parameters none of which is zero, unlike those of a new network."""
    shapes = jax.eval_shape(dit.init, jax.random.key(0), x, T, null_condition(dit, x))["params"]
    rng = np.random.default_rng(7)

    def draw(path, shape):
        return np.float32(
            (shape[0] ** -0.5 if path[-1] == "kernel" else 0.3) * rng.normal(size=shape)
        )

    return unflatten_dict(
        {path: draw(path, leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    )


@pytest.fixture(scope="module")
def new():
    return jax.jit(SMALL.init)(jax.random.key(0), X, T, LABELS)["params"]


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_the_papers_networks_have_its_number_of_parameters(size, millions):
    """Patches of 2x2, 1000 classes, the millions of the paper's table.

    Positions are not parameters.
    """
    dit = DiT(**SIZES[size]._asdict(), patch_size=2, num_classes=1000, out_channels=8)
    x = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    shapes = jax.eval_shape(dit.init, jax.random.key(0), x, jnp.zeros((1,)), null_condition(dit, x))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))

    d, depth = SIZES[size].hidden_size, SIZES[size].depth
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    patches, time, classes = 16 * d + d, (256 * d + d) + (d * d + d), 1001 * d
    last = (2 * d * d + 2 * d) + (32 * d + 32)
    assert count == patches + time + classes + depth * block + last
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_patch_is_a_square_of_the_image_and_unpatchify_the_inverse(patch_size):
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    patches, p = patchify(jnp.asarray(x), patch_size), patch_size
    rows, columns = 8 // p, 12 // p
    assert patches.shape == (2, rows * columns, p * p * 3)
    for row in range(rows):
        for column in range(columns):
            square = x[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            np.testing.assert_array_equal(patches[:, row * columns + column], square.reshape(2, -1))
    np.testing.assert_array_equal(unpatchify(patches, p, 8, 12), x)


def test_positions_are_sines_and_cosines_of_the_column_then_of_the_row():
    """The formula evaluated in float64, then rounded once: no tolerance beyond that."""
    rows, columns, features = 3, 5, 12
    n = features // 4
    expected = np.empty((rows * columns, features))
    for row in range(rows):
        for column in range(columns):
            for i in range(n):
                frequency = math.exp(-math.log(10000.0) * i / n)
                for start, place in ((0, column), (2 * n, row)):
                    expected[row * columns + column, start + i] = math.sin(place * frequency)
                    expected[row * columns + column, start + n + i] = math.cos(place * frequency)
    actual = position_embedding(rows, columns, features)
    assert actual.dtype == np.float32
    # half a unit in the last place of 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2**-24)
    assert len(np.unique(actual, axis=0)) == rows * columns


def test_the_network_is_the_equations_of_the_paper_in_float64(params):
    """The whole network written again in NumPy; float32 rounds to 1e-6 per operation."""
    p = jax.tree.map(np.float64, params)
    dense = lambda name, x, at=p: x @ at[name]["kernel"] + at[name]["bias"]  # noqa: E731
    swish = lambda x: x / (1 + np.exp(-x))  # noqa: E731

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def attention(x, at):  # [L, C], two heads
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            q, k, v = (dense(name, x, at)[:, head] for name in "qkv")
            weights = np.exp(q @ k.T / math.sqrt(16))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        return dense("proj_out", np.concatenate(heads, -1), at)

    def forward(x, t, label):
        angles = t * np.exp(-math.log(10000.0) * np.arange(128) / 128)
        waves = np.concatenate([np.cos(angles), np.sin(angles)])
        c = swish(
            dense("temb_dense1", swish(dense("temb_dense0", waves)))
            + p["class_embedding"]["embedding"][label]
        )
        h = dense(
            "patch_embedding", np.asarray(patchify(x[None], 2)[0], np.float64)
        ) + position_embedding(4, 2, 32)
        for i in range(2):
            at = p[f"block_{i}"]
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(
                dense("modulation", c, at), 6
            )
            h = h + gate_1 * attention(norm(h) * (1 + scale_1) + shift_1, at)
            inner = gelu(dense("mlp_dense0", norm(h) * (1 + scale_2) + shift_2, at))
            h = h + gate_2 * dense("mlp_dense1", inner, at)
        shift, scale = np.split(dense("modulation_out", c), 2)
        return dense("patch_out", norm(h) * (1 + scale) + shift)

    expected = np.stack([forward(*each) for each in zip(X, (0, 999), (1, K), strict=True)])
    actual = patchify(apply(SMALL, params), 2)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.full
def test_a_new_network_outputs_exactly_zero_and_a_new_block_is_exactly_the_identity(new):
    assert not np.any(apply(SMALL, new))
    tokens, c = (
        jax.random.normal(jax.random.key(2), (2, 6, 32)),
        jax.random.normal(jax.random.key(3), (2, 32)),
    )
    block = DiTBlock(num_heads=2)
    fresh = block.init(jax.random.key(0), tokens, c, None)
    np.testing.assert_array_equal(block.apply(fresh, tokens, c, None), tokens)


def test_initial_weights_are_drawn_as_the_authors_draw_them(new):
    """Uniform with the mean of the fans; embeddings N(0, 0.02^2); the rest 0.

    q, k and v are the thirds of one map.
    """
    for path, value in flatten_dict(new).items():
        layer = path[-2]
        if path[-1] == "bias" or layer in ("modulation", "modulation_out", "patch_out"):
            assert not np.any(value), path
            continue
        fans = value.shape[0] + (3 if layer in "qkv" else 1) * value.shape[1]
        narrow = layer in ("temb_dense0", "temb_dense1", "class_embedding")
        # The variance of n draws has relative standard deviation sqrt(2 / n) at most; allow five of
        # them.
        tolerance = 5 * np.sqrt(2 / value.size)
        np.testing.assert_allclose(
            value.var(), 0.02**2 if narrow else 2 / fans, rtol=tolerance, err_msg=str(path)
        )
        if not narrow:
            assert np.abs(value).max() <= np.sqrt(6 / fans) * (1 + 1e-6), path


@pytest.mark.full
def test_gradients_reach_every_parameter_and_at_first_only_the_last_layer(params, new):
    grad = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(SMALL, p) - 1.0))))
    for path, value in flatten_dict(grad(params)).items():
        assert jnp.isfinite(value).all(), path
        # adds the same to every logit of a row, which a softmax does not see
        if path[-2:] != ("k", "bias"):
            assert jnp.abs(value).max() > 0, path
    moved = {path[0] for path, value in flatten_dict(grad(new)).items() if jnp.abs(value).max() > 0}
    assert moved == {"patch_out"}


@pytest.mark.full
def test_every_output_pixel_depends_on_every_input_pixel_the_time_and_the_class(params):
    grad = jax.jit(jax.grad(lambda x: apply(SMALL, params, x)[0, 0, 0, 0]))(X)
    assert (jnp.abs(grad[0]).max(axis=-1) > 0).all()
    assert (grad[1] == 0).all(), "an example must not see its neighbour in the batch"
    y = apply(SMALL, params)
    assert jnp.abs(apply(SMALL, params, X, T + 0.5) - y).max() > 1e-4
    other = apply(SMALL, params, condition=Condition(label=jnp.array([2, K])))
    assert jnp.abs(other[0] - y[0]).max() > 1e-4
    np.testing.assert_array_equal(other[1], y[1])


@pytest.mark.full
def test_blocks_do_not_know_the_order_of_tokens_but_the_network_does(params):
    order = np.random.default_rng(0).permutation(8)
    block, own = DiTBlock(num_heads=2), {"params": params["block_0"]}
    tokens, c = (
        jax.random.normal(jax.random.key(2), (2, 8, 32)),
        jax.random.normal(jax.random.key(3), (2, 32)),
    )
    expected = block.apply(own, tokens, c, None)[:, order]
    np.testing.assert_allclose(block.apply(own, tokens[:, order], c, None), expected, atol=1e-5)

    shuffled = unpatchify(patchify(X, 2)[:, order], 2, 8, 4)
    y, y_shuffled = (
        patchify(apply(SMALL, params), 2)[:, order],
        patchify(apply(SMALL, params, shuffled), 2),
    )
    assert jnp.abs(y - y_shuffled).max() > 0.01 * jnp.abs(y).max()


def test_the_null_class_has_its_own_vector_and_other_labels_are_not_a_number(params):
    wrong = apply(SMALL, params, condition=Condition(label=jnp.array([K + 1, -1])))
    assert jnp.isnan(wrong).all()
    table = params["class_embedding"]["embedding"]
    assert table.shape == (K + 1, 32)
    unconditional = SMALL.clone(num_classes=0)
    without = {name: value for name, value in params.items() if name != "class_embedding"}
    silent = params | {"class_embedding": {"embedding": np.concatenate([table[:K], 0 * table[K:]])}}
    null = Condition(label=jnp.array([K, K]))
    np.testing.assert_array_equal(
        apply(SMALL, silent, condition=null), apply(unconditional, without, condition=None)
    )
    with pytest.raises(UsageError, match="class label"):
        apply(SMALL, params, condition=None)
    with pytest.raises(UsageError, match="not built to take a class label"):
        apply(unconditional, without)


def test_a_low_resolution_image_is_read_beside_the_noisy_one(params):
    dit = SMALL.clone(low_res_channels=3)
    kernel = params["patch_embedding"]["kernel"].reshape(4, 3, 32)
    both = params | {
        "patch_embedding": params["patch_embedding"]
        | {"kernel": np.concatenate([kernel, kernel], axis=1).reshape(24, 32)}
    }
    halves = LABELS._replace(low_res=0.25 * X)
    np.testing.assert_allclose(
        apply(dit, both, 0.75 * X, T, halves), apply(SMALL, params), atol=1e-4
    )


@pytest.mark.full
def test_bfloat16_is_near_float32_with_float32_parameters_and_output(params):
    dit = SMALL.clone(dtype=jnp.bfloat16)
    y, expected = apply(dit, params), apply(SMALL, params)
    assert y.dtype == jnp.float32
    initial = jax.eval_shape(dit.init, jax.random.key(0), X, T, LABELS)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits: 0.4 % an operation, some 20 operations deep, errors of random sign.
    error = jnp.sqrt(jnp.mean(jnp.square(y - expected)) / jnp.mean(jnp.square(expected)))
    assert 1e-4 < error < 0.05
    dtypes = {
        "exp": set(),
        "rsqrt": set(),
        "reduce_sum": set(),
        "reduce_max": set(),
        "dot_general": set(),
    }
    jaxpr = jax.make_jaxpr(lambda p: dit.apply({"params": p}, X, T, LABELS))(params)
    for eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name in dtypes:
            dtypes[eqn.primitive.name].add(str(eqn.invars[0].aval.dtype))
    assert "bfloat16" in dtypes.pop("dot_general")
    assert dtypes == {name: {"float32"} for name in dtypes}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_recomputation_changes_no_gradient_and_is_in_the_backward_pass(params, remat):
    dit, keys = SMALL.clone(dropout=0.3), jax.random.split(jax.random.key(3), 2)

    def loss(dit):
        return jax.grad(
            lambda p: jnp.mean(
                jnp.square(dit.apply({"params": p}, X, T, LABELS, dropout_keys=keys))
            )
        )

    def recomputed(dit):
        jaxpr = jax.make_jaxpr(loss(dit))(params)
        return sum(
            eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in equations(jaxpr.jaxpr)
        )

    again = dit.clone(remat=remat)
    assert (recomputed(dit), recomputed(again)) == (0, dit.depth)
    plain, ours = (flatten_dict(jax.jit(loss(network))(params)) for network in (dit, again))
    for path, grad in plain.items():
        np.testing.assert_allclose(
            ours[path], grad, atol=1e-5 * float(jnp.abs(grad).max()) + 1e-7, err_msg=str(path)
        )


def test_dropout_depends_on_the_examples_key_and_not_on_its_neighbours(params):
    dit, keys = SMALL.clone(dropout=0.5), jax.random.split(jax.random.key(3), 2)
    y = apply(dit, params, keys=keys)
    np.testing.assert_array_equal(apply(dit, params), apply(SMALL, params))
    assert jnp.abs(y - apply(SMALL, params)).max() > 1e-3
    swapped = apply(dit, params, X[::-1], T[::-1], Condition(label=LABELS.label[::-1]), keys[::-1])
    np.testing.assert_allclose(swapped[::-1], y, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (32, 32)),
        ({"patch_size": 1}, (5, 3)),
        ({"patch_size": 8, "dtype": "bfloat16"}, (256, 192)),
    ],
)
def test_what_can_be_built_is_accepted(fields, size):
    check_dit(DiT(**fields), *size)


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, (33, 32), "height 33 is not divisible by patch_size 2"),
        ({"patch_size": 8}, (32, 28), "width 28 is not divisible by patch_size 8"),
        ({}, (0, 32), "height 0"),
        ({"patch_size": 0}, (32, 32), "patch_size is 0"),
        ({"patch_size": 2.0}, (32, 32), r"patch_size is 2\.0"),
        ({"depth": 0}, (32, 32), "depth is 0"),
        ({"hidden_size": 0}, (32, 32), "hidden_size is 0"),
        ({"num_heads": 0}, (32, 32), "num_heads is 0"),
        ({"num_heads": 5}, (32, 32), "num_heads 5 does not divide hidden_size 384"),
        ({"hidden_size": 30}, (32, 32), "hidden_size 30 is not divisible by 4.* make it 32"),
        ({"out_channels": 0}, (32, 32), "out_channels is 0"),
        ({"num_classes": -1}, (32, 32), "num_classes is -1"),
        ({"dropout": 1.0}, (32, 32), r"dropout is 1\.0"),
        ({"norm_eps": 0.0}, (32, 32), r"norm_eps is 0\.0"),
        (
            {"time_embedding": "cos_sine"},
            (32, 32),
            "Unknown time embedding 'cos_sine'.* Did you mean 'cos_sin'",
        ),
        ({"dtype": "int32"}, (32, 32), "dtype is 'int32'"),
        ({"remat": "block"}, (32, 32), "Unknown remat 'block'.* Did you mean 'blocks'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_value_named(fields, size, words):
    with pytest.raises(UsageError, match=words):
        check_dit(DiT(**fields), *size)
