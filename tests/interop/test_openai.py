"""Networks in the names of OpenAI's code, against PyTorch with the same random weights.

Chains and outputs of the reference itself are in tests/families/test_openai.py.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.data.transforms import upsample
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.openai import (
    classifier_params_from_openai,
    classifier_params_to_openai,
    constructor,
    unet_params_from_openai,
    unet_params_to_openai,
)
from ddpm_jax.interop.renaming import network_shapes, shapes_of
from ddpm_jax.interop.tensor_store import open_tensors
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.unet import UNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")

from .openai_peer import Peer  # noqa: E402

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/openai"
TINY = {
    "resolution": 8,
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8, 4),
    "dropout": 0.0,
    "time_embedding": "cos_sin",
    "norm_eps": 1e-5,
    "downsample_padding": "both",
}
UNETS = {
    "conv": UNet(
        **TINY, num_heads=4, num_heads_up=2, num_classes=3, null_class=False, low_res_channels=3
    ),
    "block": UNet(
        **TINY | {"num_res_blocks": 2},
        resampling="block",
        head_channels=16,
        scale_shift_norm=True,
        time_channels=64,
        out_channels=6,
        qkv_order="maps",
    ),
    "pool": UNet(
        **TINY | {"ch": 64, "ch_mult": (1, 1, 1.5), "attn_resolutions": (4,)},
        resampling="pool",
        num_heads=2,
        out_channels=1,
        qkv_order="maps",
    ),
    "block, heads": UNet(
        **TINY, resampling="block", num_heads=2, num_heads_up=8, num_classes=2, out_channels=2
    ),
}
CLASSIFIERS = {
    "attention": Classifier(
        **TINY,
        resampling="block",
        head_channels=32,
        scale_shift_norm=True,
        num_classes=5,
        pool="attention",
    ),
    "mean": Classifier(**TINY, num_heads=4, num_classes=5),
    "attention, maps": Classifier(
        **TINY, resampling="pool", num_heads=4, num_classes=5, pool="attention", qkv_order="maps"
    ),
}


def params_of(shapes, seed=0):
    """Draw parameters none of which is zero, unlike those of a new network."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        deviation = np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.3
        return np.float32(deviation * rng.normal(size=shape) + (path[-1] == "scale"))

    return unflatten_dict({path: draw(path, shape) for path, shape in shapes.items()})


@functools.cache
def random_unet(name):
    unet = UNETS[name]
    channels = 1 if unet.out_channels < 3 else 3
    shapes = network_shapes(unet, channels + unet.low_res_channels, side=8)
    return params_of(shapes), channels


def peer_of(tensors, network, dtype=torch.float64):
    return Peer(
        {name: torch.tensor(value, dtype=dtype) for name, value in tensors.items()},
        blocks=network.num_res_blocks,
        heads=network.num_heads,
        heads_up=network.num_heads_up,
        head_channels=network.head_channels,
        by_head=network.qkv_order == "heads",
    )


def inputs_of(unet, channels):
    """Return x, t, labels and the low-resolution image, of two images that are not square."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 8, 16, channels)).astype(np.float32)
    label = np.array([0, unet.num_classes - 1]) if unet.num_classes else None
    low_res = rng.normal(size=(2, 4, 8, 3)).astype(np.float32) if unet.low_res_channels else None
    return x, np.array([3.0, 731.25], np.float32), label, low_res


def nchw(x):
    return None if x is None else torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64)


def test_the_peer_of_these_tests_is_the_reference():
    for name, network in (
        ("improved_cifar_like", UNet(num_res_blocks=1, num_heads=4)),
        ("guided_64_like", UNet(num_res_blocks=1, head_channels=16, qkv_order="maps")),
    ):
        golden = np.load(GOLDENS / name / "forward.npz")
        x, t = torch.tensor(golden["x"]), torch.tensor(golden["t"])
        y = torch.tensor(golden["y"]) if "y" in golden else None
        peer = peer_of(open_tensors(GOLDENS / name / "model.pt"), network, torch.float32)
        np.testing.assert_allclose(peer.unet(x, t, y), golden["out"], rtol=0, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", UNETS)
def test_outputs_of_a_unet_are_those_of_pytorch(name):
    unet, (params, channels) = UNETS[name], random_unet(name)
    x, t, label, low_res = inputs_of(unet, channels)
    peer = peer_of(unet_params_to_openai(params, unet), unet)
    theirs = peer.unet(
        nchw(x),
        torch.tensor(t),
        None if label is None else torch.tensor(label),
        nchw(low_res),
    )
    condition = None
    if label is not None or low_res is not None:
        condition = Condition(
            None if label is None else jnp.asarray(label),
            None if low_res is None else upsample(low_res, 2),
        )
    ours = jax.jit(unet.apply)({"params": params}, x, t, condition)
    scale = float(theirs.abs().max())
    np.testing.assert_allclose(
        ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-5 * scale
    )


@functools.cache
def random_classifier(name):
    inputs = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    return params_of(shapes_of(CLASSIFIERS[name], *inputs))


@pytest.mark.full
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_and_gradients_of_a_classifier_are_those_of_pytorch(name):
    classifier, params = CLASSIFIERS[name], random_classifier(name)
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([3.0, 731.25], np.float32)
    peer = peer_of(classifier_params_to_openai(params, classifier), classifier)
    there = nchw(x).requires_grad_()
    logits = peer.classifier(there, torch.tensor(t))
    torch.log_softmax(logits, dim=1)[:, 2].sum().backward()

    @functools.partial(jax.grad, has_aux=True)
    def gradient(x):
        ours = classifier.apply({"params": params}, x, t)
        return jax.nn.log_softmax(ours)[:, 2].sum(), ours

    ours, our_logits = jax.jit(gradient)(x)
    np.testing.assert_allclose(our_logits, logits.detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, there.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "block"])
def test_gradients_of_the_loss_by_every_parameter_are_those_of_pytorch(name):
    unet, (params, channels) = UNETS[name], random_unet(name)
    x, t, label, low_res = inputs_of(unet, channels)
    peer = peer_of(unet_params_to_openai(params, unet), unet)
    for tensor in peer.tensors.values():
        tensor.requires_grad_()
    label_there = None if label is None else torch.tensor(label)
    (peer.unet(nchw(x), torch.tensor(t), label_there, nchw(low_res)) ** 2).mean().backward()
    condition = None if label is None else Condition(jnp.asarray(label), upsample(low_res, 2))

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.square(unet.apply({"params": params}, x, t, condition)).mean()

    ours = unet_params_to_openai(jax.tree.map(np.asarray, gradient(params)), unet)
    for key, tensor in peer.tensors.items():
        scale = float(tensor.grad.abs().max())
        np.testing.assert_allclose(
            ours[key], tensor.grad, rtol=0, atol=1e-4 * scale + 1e-7, err_msg=key
        )


@pytest.mark.parametrize("name", UNETS)
def test_there_and_back_is_the_identity(name):
    unet, (params, _) = UNETS[name], random_unet(name)
    back = unet_params_from_openai(unet_params_to_openai(params, unet), unet)
    assert flatten_dict(back).keys() == flatten_dict(params).keys()
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_comes_back_the_same(name):
    classifier, params = CLASSIFIERS[name], random_classifier(name)
    tensors = classifier_params_to_openai(params, classifier)
    back = classifier_params_from_openai(tensors, classifier)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_arguments_of_the_constructor_are_those_of_the_reference():
    """As recorded with the goldens and in OpenAI's scripts for 512x512."""
    same = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "dropout": 0.0}
    guided = UNet(
        **TINY | {"resolution": 16, "ch_mult": (1, 1), "attn_resolutions": (8,)},
        resampling="block",
        head_channels=16,
        scale_shift_norm=True,
        out_channels=6,
        num_classes=8,
        null_class=False,
        qkv_order="maps",
    )
    assert constructor(guided, 3) == (
        "UNetModel",
        same
        | {
            "image_size": 16,
            "in_channels": 3,
            "out_channels": 6,
            "attention_resolutions": (2,),
            "num_classes": 8,
            "num_heads": 1,
            "num_head_channels": 16,
            "num_heads_upsample": -1,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "conv_resample": False,
            "use_new_attention_order": True,
        },
    )
    heads = UNet(**TINY, num_heads=4, num_heads_up=2, low_res_channels=3)
    name, arguments = constructor(heads, 3)
    assert name == "SuperResModel"
    assert (arguments["num_heads"], arguments["num_heads_upsample"]) == (4, 2)
    assert arguments["conv_resample"]
    at_512 = UNet(
        **TINY | {"resolution": 512, "ch": 128, "ch_mult": (1, 2, 2, 4, 4, 8, 8)},
        time_channels=256,
    )
    _, arguments = constructor(at_512.clone(attn_resolutions=(32, 16, 8)), 3)
    assert arguments["model_channels"] == 256
    assert arguments["channel_mult"] == (0.5, 1, 1, 2, 2, 4, 4)
    assert arguments["attention_resolutions"] == (16, 32, 64)
    name, arguments = constructor(CLASSIFIERS["attention"], 3)
    assert (name, arguments["pool"]) == ("EncoderUNetModel", "attention")
    assert constructor(CLASSIFIERS["mean"], 3)[1]["pool"] == "adaptive"
    with pytest.raises(UsageError, match="head_channels is 0"):
        constructor(CLASSIFIERS["attention, maps"], 3)


def test_both_orders_are_the_same_rows():
    """By head: q, k and v of the first head, then of the second; by map: all of q first."""
    unet, (params, _) = UNETS["conv"].clone(num_heads=2, num_heads_up=0), random_unet("conv")
    by_head = unet_params_to_openai(params, unet)["middle_block.1.qkv.weight"]
    by_map = unet_params_to_openai(params, unet.clone(qkv_order="maps"))[
        "middle_block.1.qkv.weight"
    ]
    halves = {
        part: np.split(rows, 2) for part, rows in zip("qkv", np.split(by_map, 3), strict=True)
    }
    expected = [halves[part][head] for head in (0, 1) for part in "qkv"]
    np.testing.assert_array_equal(by_head, np.concatenate(expected))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"time_embedding": "sin_cos"}, "time_embedding is 'sin_cos'"),
        ({"downsample_padding": "end"}, "downsample_padding is 'end'"),
        ({"ch_mult": (2, 2)}, r"ch_mult is \(2, 2\)"),
        ({"norm_groups": 16}, "norm_groups is 16"),
        ({"mid_block": "blocks"}, "mid_block is 'blocks'"),
        ({"block_down": (0,)}, r"block_down is \(0,\)"),
    ],
)
def test_what_this_code_lacks_is_not_written(fields, words):
    params, _ = random_unet("conv")
    with pytest.raises(UsageError, match=words):
        unet_params_to_openai(params, UNETS["conv"].clone(**fields))
