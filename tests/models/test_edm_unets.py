"""The networks of EDM: filters, conditions, published sizes, what is refused.

Their outputs are compared with those of NVlabs/edm in tests/interop/test_edm.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition, null_condition
from ddpm_jax.models.edm_unets import ADMUNet, SongUNet, check_adm_unet, check_song_unet
from ddpm_jax.models.layers import doubled, halved

SMOOTH = (1, 3, 3, 1)
SONG = SongUNet(8, 8, (1,), 1, (), num_classes=3, augment_dim=9, embedding="fourier")
ADM = ADMUNet(8, 8, (1,), 1, (), num_classes=3, augment_dim=9)
X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
T = np.array([0.3, -1.2], np.float32)


@pytest.fixture(scope="module", params=[SONG, ADM], ids=["song", "adm"])
def trained(request):
    """Parameters, none of them zero, and a network as a function of them and of a condition."""
    network, condition = request.param, null_condition(request.param, X)
    shapes = jax.eval_shape(network.init, jax.random.key(0), X, T, condition)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    return params, jax.jit(lambda params, c: network.apply({"params": params}, X, T, c))


def test_the_filter_that_shrinks_is_the_sum_over_pixels_in_float64():
    x = np.float64(np.pad(X, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    taps = np.outer(SMOOTH, SMOOTH) / 64
    for i, j in [(0, 0), (1, 3), (3, 2)]:
        window = x[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        expected = (window * taps[None, :, :, None]).sum(axis=(1, 2))
        np.testing.assert_allclose(halved(X, SMOOTH)[:, i, j], expected, rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("taps", [(1, 1), SMOOTH, (1, 2, 4, 1), (1, 1, 2, 2, 1, 3)])
def test_enlarging_is_four_times_the_transpose_of_shrinking(taps):
    (transposed,) = jax.linear_transpose(lambda x: halved(x, taps), X)(halved(X, taps))
    np.testing.assert_allclose(doubled(halved(X, taps), taps), 4 * transposed, rtol=0, atol=1e-5)


def test_the_box_is_the_mean_of_four_pixels_and_repeats_them():
    scaled_box = (2, 2)  # the same filter, which is computed by its taps
    np.testing.assert_allclose(halved(X, scaled_box), halved(X), rtol=0, atol=1e-6)
    np.testing.assert_allclose(doubled(X, scaled_box), doubled(X), rtol=0, atol=1e-6)


def test_the_null_class_adds_nothing_and_no_class_is_nan(trained):
    params, apply = trained
    without = dict(params)
    kernel = without["class_embedding"]["kernel"]
    without["class_embedding"] = params["class_embedding"] | {"kernel": jnp.zeros_like(kernel)}
    first, null, none = (Condition(np.full(2, label, np.int32)) for label in (0, 3, 4))
    np.testing.assert_array_equal(apply(params, null), apply(without, first))
    assert not np.allclose(apply(params, null), apply(params, first), atol=1e-3)
    assert np.isnan(apply(params, none)).all()


def test_an_augmentation_that_is_not_told_is_zeros(trained):
    params, apply = trained
    label = np.zeros(2, np.int32)
    told = [
        apply(params, Condition(label, augment=np.full((2, 9), value, np.float32)))
        for value in (0, 1)
    ]
    np.testing.assert_allclose(apply(params, Condition(label)), told[0], rtol=0, atol=1e-5)
    assert not np.allclose(*told, atol=1e-3)
    with pytest.raises(
        UsageError, match=r"augmentations are \(2, 8\): this network takes \(2, 9\)"
    ):
        apply(params, Condition(label, augment=np.zeros((2, 8), np.float32)))
    with pytest.raises(UsageError, match="class label"):
        apply(params, None)


@pytest.mark.full
@pytest.mark.parametrize("trained", [SONG], indirect=True)
def test_random_frequencies_get_no_gradient(trained):
    params, apply = trained
    condition = Condition(np.zeros(2, np.int32))
    grads = jax.jit(jax.grad(lambda params: apply(params, condition).sum()))(params)
    assert not grads["frequencies"].any()
    assert grads["temb_dense0"]["kernel"].any()


@pytest.mark.full
@pytest.mark.parametrize(
    ("network", "millions", "digit"),
    [
        (SongUNet(32, 128, (2, 2, 2), 4, (16,), augment_dim=9), 55.7, 0.1),  # DDPM++, CIFAR-10
        (
            SongUNet(
                *(32, 128, (2, 2, 2), 4, (16,)),
                augment_dim=9,
                embedding="fourier",
                embedding_mult=2,
                encoder="residual",
                resample_filter=SMOOTH,
            ),
            *(56, 1),  # NCSN++, CIFAR-10
        ),
        (ADMUNet(64, num_classes=1000), 296, 1),  # ADM, ImageNet at 64x64
    ],
    ids=["DDPM++", "NCSN++", "ADM"],
)
def test_networks_of_the_paper_have_the_published_numbers_of_parameters(network, millions, digit):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, T[:1], null_condition(network, x))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(millions, abs=digit / 2)


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (SONG, {"embedding": "cosine"}, "cosine"),
        (SONG, {"encoder": "residuals"}, "residual"),
        (SONG, {"decoder": "residual"}, "decoder"),
        (SONG, {"resample_filter": (1, 2, 1)}, r"\(1, 2, 1\): give an even number of taps"),
        (SONG, {"resample_filter": (1, -1)}, "whose sum is not 0"),
        (SONG, {"ch": 2}, "ch is 2: give an even number of 4 or more"),
        (SONG, {"ch": 72, "ch_mult": (1, 1)}, "144 channels, .* in 32 groups of 4 or more"),
        (SONG, {"augment_dim": -1}, "augment_dim is -1"),
        (SONG, {"temb_mult": 0}, "temb_mult is 0"),
        (SONG, {"dropout": 1.0}, "dropout is 1.0"),
        (SONG, {"attn_resolutions": (3,)}, "attn_resolutions names 3"),
        (ADM, {"attn_resolutions": (8,)}, "a level of 8 channels, and a head has about 64"),
        (ADM, {"ch_mult": (1,) * 5}, "height 8 is not divisible by 16"),
    ],
)
def test_what_cannot_be_built_is_refused(network, changes, message):
    check = check_song_unet if network is SONG else check_adm_unet
    check(network, 8, 8)
    with pytest.raises(UsageError, match=message):
        check(network.clone(**changes), 8, 8)
