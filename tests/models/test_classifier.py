"""The classifier against the U-Net whose half it is, and what a user can get wrong about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models.classifier import Classifier, check_classifier
from ddpm_jax.models.unet import UNet

FIELDS = {
    "resolution": 8,
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "dropout": 0.2,
}
CLASSIFIER = Classifier(num_classes=5, **FIELDS)
T = jnp.array([3, 700])


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (2, 8, 8, 1))


@pytest.fixture(scope="module")
def params(x):
    """Return parameters none of which is zero, unlike those of a new network."""
    shapes = flatten_dict(jax.eval_shape(CLASSIFIER.init, jax.random.key(0), x, T))
    rng = np.random.default_rng(7)

    def draw(path, shape):
        deviation = np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1
        return np.float32(deviation * rng.normal(size=shape) + (path[-1] == "scale"))

    return unflatten_dict({path: draw(path, leaf.shape) for path, leaf in shapes.items()})


@pytest.mark.slow
def test_logits_are_a_linear_map_of_the_mean_over_the_unets_lowest_features(x, params):
    """A U-Net with the classifier's parameters on its way down; pooling in NumPy."""
    unet = UNet(out_channels=1, **FIELDS)
    up = unet.init(jax.random.key(2), x, T)["params"]
    ours = params["params"]
    shared = up | {
        name: leaves for name, leaves in ours.items() if name not in ("norm_out", "logits")
    }
    _, kept = unet.apply(
        {"params": shared},
        x,
        T,
        capture_intermediates=lambda module, _: module.name == "mid_block_2",
        mutable=True,
    )
    (h,) = kept["intermediates"]["mid_block_2"]["__call__"]
    groups = np.asarray(h, np.float64).reshape(2, 16, 32, 2)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    h = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(2, 16, 64) * ours["norm_out"]["scale"]
    h = h + ours["norm_out"]["bias"]
    pooled = (h / (1 + np.exp(-h))).mean(axis=1)
    logits = jax.jit(CLASSIFIER.apply)(params, x, T)
    # float32 through some twenty layers
    np.testing.assert_allclose(
        logits, pooled @ ours["logits"]["kernel"] + ours["logits"]["bias"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_new_network_finds_all_classes_equally_likely(x):
    logits = CLASSIFIER.apply(CLASSIFIER.init(jax.random.key(0), x, T), x, T)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, 0, atol=1e-5)  # a sum of 64 features times weights of 1e-6


@pytest.mark.slow
def test_an_image_is_judged_by_itself_its_time_and_its_key(x, params):
    apply = jax.jit(CLASSIFIER.apply)
    both = apply(params, x, T)
    np.testing.assert_allclose(apply(params, x[1:], T[1:])[0], both[1], rtol=1e-5, atol=1e-5)
    assert np.abs(apply(params, x, T[::-1]) - both).max() > 1e-3
    keys = jax.random.split(jax.random.key(3), 2)
    assert np.abs(apply(params, x, T, dropout_keys=keys) - both).max() > 1e-3


@pytest.mark.slow
def test_recomputation_changes_no_gradient(x, params):
    def gradient(classifier):
        return jax.jit(
            jax.grad(lambda x: jnp.sum(jax.nn.log_softmax(classifier.apply(params, x, T))[:, 2]))
        )(x)

    plain = gradient(CLASSIFIER)
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_allclose(
        gradient(CLASSIFIER.clone(remat="blocks")), plain, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({"num_classes": 1}, 32, "classifier of 1 classes"),
        ({"num_classes": 10}, 36, "height 36 is not divisible by 8"),
        ({"num_classes": 10, "ch": 48}, 32, "48 channels .* 32 groups"),
        ({"num_classes": 10, "attn_resolutions": (7,)}, 32, "attn_resolutions names 7"),
        ({"num_classes": 10, "time_embedding": "cos"}, 32, "Unknown time embedding"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_value_named(fields, size, words):
    with pytest.raises(UsageError, match=words):
        check_classifier(Classifier(**fields), size, size)


def test_what_can_be_built_is_accepted():
    check_classifier(CLASSIFIER, 8, 8)
    check_classifier(Classifier(num_classes=1000, dtype="bfloat16"), 64, 64)
