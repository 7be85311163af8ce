"""The U-Net given a class or a low-resolution image: where it enters, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition, check_labels, null_condition, uninformed
from ddpm_jax.models.unet import UNet

K = 3
# Scale and shift: with 32 channels in 32 groups, a norm would remove what is added to a channel.
PLAIN = UNet(
    resolution=8,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    dropout=0.0,
    scale_shift_norm=True,
)
BY_CLASS = PLAIN.clone(num_classes=K)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
T = jnp.array([5, 700])


@functools.partial(jax.jit, static_argnums=0)
def apply(unet, params, x, condition):
    return unet.apply({"params": params}, x, T, condition)


def random_params(unet, x=X):
    """Return parameters none of which is zero, unlike those of a new network."""
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, T, null_condition(unet, x))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.3
        return np.float32(deviation * rng.normal(size=leaf.shape) + (path[-1] == "scale"))

    return unflatten_dict({path: draw(path, leaf) for path, leaf in flatten_dict(shapes).items()})


@pytest.fixture(scope="module")
def params():
    return random_params(BY_CLASS)


def labelled(*label):
    return Condition(label=jnp.array(label, jnp.int32))


def test_only_the_embedding_of_k_classes_and_the_null_class_is_new(params):
    plain = jax.eval_shape(PLAIN.init, jax.random.key(0), X, T)["params"]
    new = {
        path: leaf.shape
        for path, leaf in flatten_dict(params).items()
        if path not in flatten_dict(plain)
    }
    assert new == {("class_embedding", "embedding"): (K + 1, 4 * 32)}


@pytest.mark.full
def test_a_class_whose_embedding_is_zero_gives_the_unconditional_network_bit_for_bit(params):
    rest = {name: value for name, value in params.items() if name != "class_embedding"}
    embedding = params["class_embedding"]["embedding"] * np.array([1, 0, 1, 1], np.float32)[:, None]
    silent = {**rest, "class_embedding": {"embedding": embedding}}
    np.testing.assert_array_equal(
        apply(BY_CLASS, silent, X, labelled(1, 1)), apply(PLAIN, rest, X, None)
    )
    assert (
        jnp.abs(
            apply(BY_CLASS, silent, X, labelled(0, 1))[0] - apply(PLAIN, rest, X, None)[0]
        ).max()
        > 1e-2
    )


def test_every_class_and_the_null_class_differ_and_only_the_own_image_is_touched(params):
    outputs = [apply(BY_CLASS, params, X, labelled(0, label)) for label in range(K + 1)]
    for a in range(K + 1):
        np.testing.assert_array_equal(outputs[a][0], outputs[0][0])
        for b in range(a):
            assert jnp.abs(outputs[a][1] - outputs[b][1]).max() > 1e-2
    np.testing.assert_array_equal(
        apply(BY_CLASS, params, X, uninformed(labelled(0, 1), K)),
        apply(BY_CLASS, params, X, labelled(K, K)),
    )


@pytest.mark.full
def test_the_class_reaches_every_residual_block(params):
    blocks = [name for name in params if "_block_" in name]
    assert len(blocks) == 8

    def difference(deaf):
        flat = {
            path: value * (path[0] not in deaf or path[1] != "temb_proj" or path[-1] == "bias")
            for path, value in flatten_dict(params).items()
        }
        heard = [
            apply(BY_CLASS, unflatten_dict(flat), X, labelled(label, label)) for label in (0, 1)
        ]
        return jnp.abs(heard[0] - heard[1]).max()

    assert difference(deaf=blocks) == 0
    for block in blocks:
        assert difference(deaf=[name for name in blocks if name != block]) > 1e-3, block


@pytest.mark.slow
def test_the_gradient_of_a_class_is_that_of_its_own_images(params):
    grads = jax.grad(lambda p: jnp.sum(apply(BY_CLASS, p, X, labelled(0, K)) ** 2))(params)[
        "class_embedding"
    ]["embedding"]
    assert [bool(jnp.any(row != 0)) for row in grads] == [True, False, False, True]


def test_a_label_that_is_no_class_gives_not_a_number_and_no_other_class(params):
    for label in (-1, K + 1, 1000):
        output = apply(BY_CLASS, params, X, labelled(label, 0))
        assert jnp.all(jnp.isnan(output[0]))
        assert jnp.all(jnp.isfinite(output[1]))


@pytest.mark.full
def test_a_low_resolution_image_is_further_channels_of_the_input():
    unet, low_res = PLAIN.clone(low_res_channels=3), jax.random.normal(jax.random.key(2), X.shape)
    both = jnp.concatenate([X, low_res], axis=-1)
    params = random_params(unet)
    np.testing.assert_array_equal(
        apply(unet, params, X, Condition(low_res=low_res)), apply(PLAIN, params, both, None)
    )


@pytest.mark.parametrize(
    ("unet", "condition", "words"),
    [
        (BY_CLASS, None, r"needs a class label for every image \(3 classes\), and none is given"),
        (BY_CLASS, Condition(), "needs a class label"),
        (PLAIN, labelled(0, 1), "not built to take a class label"),
        (PLAIN, Condition(low_res=X), "not built to take a low-resolution image"),
        (PLAIN.clone(low_res_channels=3), None, "needs a low-resolution image"),
        (
            PLAIN.clone(low_res_channels=3),
            Condition(low_res=X[:, ::2, ::2]),
            r"\(2, 4, 4, 3\): bring them .* \(2, 8",
        ),
        (BY_CLASS, labelled(0, 1, 2), "one integer for each of 2 images"),
        (BY_CLASS, Condition(label=jnp.array([0.0, 1.0])), "one integer"),
    ],
)
def test_a_condition_that_the_network_was_not_built_for_is_refused(unet, condition, words):
    with pytest.raises(UsageError, match=words):
        jax.eval_shape(unet.init, jax.random.key(0), X, T, condition)


def test_labels_on_the_host_are_checked_by_value():
    check_labels(np.array([0, K - 1]), K)
    for bad in (-1, K):
        with pytest.raises(
            UsageError, match=f"Label {bad} is no class of this model: choose among 0 to 2"
        ):
            check_labels(np.array([0, bad]), K)
