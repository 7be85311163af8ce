"""Checkpoints of the PyTorch ports of DDPM, against outputs of those ports' own code."""

import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.families.ddpm_ports import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container
from ddpm_jax.interop.pytorch_ports import port_name, unet_params_to_port
from ddpm_jax.interop.renaming import unet_shapes
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/pytorch_ports/ddim_training"
SIZE = Request(fields={"data.image_size": 16})


@pytest.fixture(scope="module")
def container():
    return open_container(GOLDENS / "ckpt.pth")


@pytest.fixture(scope="module")
def foreign(container):
    return recognise(container, SIZE)


def test_outputs_are_those_of_the_port(foreign, imported):
    model, params = imported(foreign, SIZE)
    golden = np.load(GOLDENS / "forward.npz")
    x = golden["x"].transpose(0, 2, 3, 1)
    apply = jax.jit(lambda params: model.network.apply({"params": params}, x, golden["t"]))
    for kind in ("raw", "ema"):
        actual = apply(params[kind])
        expected = golden[f"out_{kind}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5, err_msg=kind)


@pytest.mark.full
def test_a_chain_of_ddim_is_that_of_the_port(foreign, imported):
    model, params = imported(foreign, SIZE)
    golden = np.load(GOLDENS / "ddim_10_steps_ema.npz")
    sampler = make_sampler("ddim", model.chain, spacing=sorted(golden["times"].tolist()))
    denoiser = model.process.denoiser(
        lambda x, t: model.network.apply({"params": params["ema"]}, x, t),
        sampler.schedule,
        clip="none",
    )
    x_T = golden["initial_noise"].transpose(0, 2, 3, 1)
    frames = jax.jit(lambda x_T: sample(denoiser, sampler, x_T, trajectory=True).frames_x_t)(x_T)
    expected = golden["states"].transpose(0, 1, 3, 4, 2)
    # x_0 is not clipped: the states grow to some 30
    np.testing.assert_allclose(frames[1:], expected, rtol=1e-4, atol=1e-4)


def test_written_back_every_tensor_is_the_same(foreign, imported):
    model, params = imported(foreign, SIZE)
    for kind, tensors in foreign.weights.items():
        back = foreign.write(params[kind], model.network)
        assert back.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert "conv_in.weight" in foreign.weights["raw"]  # without the prefix of DataParallel


def test_what_the_files_say_and_what_is_assumed(foreign):
    assert foreign.fields["model.ch_mult"] == (1, 1)
    assert foreign.fields["model.attn_resolutions"] == (8,)
    assert foreign.fields["model.num_res_blocks"] == 1
    assert "data.image_size" not in foreign.assumed  # the user has said it
    assert foreign.assumed["diffusion.schedule"].value == "linear"
    assert foreign.released_as == ""
    assert foreign.unread == ("the state of an optimiser",)


def zeros(unet, in_channels=3):
    """Return the state dict of a network of zeros that takes no memory."""
    params = {}
    for path, shape in unet_shapes(unet, in_channels).items():
        *modules, leaf = path
        group = params
        for module in modules:
            group = group.setdefault(module, {})
        group[leaf] = np.broadcast_to(np.float32(0), shape)
    return unet_params_to_port(params)


CIFAR10 = UNet()


@pytest.fixture(scope="module")
def cifar10():
    return zeros(CIFAR10)


def of(tensors, **groups):
    return Container(pathlib.Path("model.ckpt"), "a file of PyTorch", {"": tensors, **groups}, {})


def test_the_released_model_of_cifar10_is_known_by_its_sizes(cifar10):
    assert sum(value.size for value in cifar10.values()) == 35_746_307  # of the original's graph
    foreign = recognise(of(cifar10), Request())
    assert foreign.released_as == "DDPM on CIFAR-10"
    assumed = {name: guess.value for name, guess in foreign.assumed.items()}
    assert assumed["data.image_size"] == 32
    assert assumed["diffusion.variance"] == "fixed_large"
    assert foreign.fields["model.attn_resolutions"] == (16,)
    assert list(foreign.weights) == ["raw"]


@pytest.mark.full
def test_the_released_models_at_256_are_known_by_their_sizes():
    tensors = zeros(UNet(resolution=256, ch_mult=(1, 1, 2, 2, 4, 4)))
    assert sum(value.size for value in tensors.values()) == 113_673_219
    foreign = recognise(of(tensors), Request())
    assert "CelebA-HQ" in foreign.released_as
    assert "LSUN Church" in foreign.released_as
    assert foreign.assumed["diffusion.variance"].value == "fixed_small"
    named = recognise(of(tensors), Request(preset="ddpm_lsun_church"))
    assert named.released_as == "DDPM on LSUN Church at 256x256"


def test_other_files_are_not_of_this_family(cifar10):
    autoencoder = {f"encoder.{name}": value for name, value in cifar10.items()}
    without_time = {name: value for name, value in cifar10.items() if "temb" not in name}
    for tensors in ({}, autoencoder, without_time):
        assert recognise(of(tensors), Request()) is None


def test_two_groups_are_raw_and_average_by_their_keys(cifar10):
    foreign = recognise(
        Container(pathlib.Path("a"), "", {"model": cifar10, "ema_model": cifar10}, {}), Request()
    )
    assert list(foreign.weights) == ["raw", "ema"]
    with pytest.raises(UsageError, match=r"several networks, under the keys model, other"):
        recognise(
            Container(pathlib.Path("a"), "", {"model": cifar10, "other": cifar10}, {}), Request()
        )


@pytest.mark.parametrize(
    ("without", "replaced", "request_", "message"),
    [
        ("conv_out.weight", {}, Request(), r"lacks conv_out\.weight"),
        ("", {"conv_out.weight": (5, 128, 3, 3)}, Request(), "5 channels: 3 are expected, or 6"),
        (
            "",
            {"down.1.block.0.conv1.weight": (200, 128, 3, 3)},
            Request(),
            "no multiple of the 128",
        ),
        ("", {}, Request(preset="imagenet64"), "Unknown preset 'imagenet64'"),
        ("", {}, Request(preset="ddpm_lsun_cat"), r"is not DDPM on LSUN Cat at 256x256, which has"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(cifar10, without, replaced, request_, message):
    tensors = {name: value for name, value in cifar10.items() if name != without}
    tensors |= {name: np.broadcast_to(np.float32(0), shape) for name, shape in replaced.items()}
    with pytest.raises(UsageError, match=message):
        recognise(of(tensors), request_)


def test_a_tensor_left_over_is_named(cifar10):
    extra = {**cifar10, "down.1.attn.2.q.weight": np.zeros((1, 1), np.float32)}
    foreign = recognise(of(extra), Request())
    with pytest.raises(UsageError, match=r"has, beyond the network's, down\.1\.attn\.2\.q\.weight"):
        foreign.read(foreign.weights["raw"], CIFAR10)


def test_a_learned_variance_is_seen(imported):
    tensors = zeros(UNet(ch=32, ch_mult=(1, 2), num_res_blocks=1, out_channels=6))
    foreign = recognise(of(tensors), Request())
    assert foreign.fields["diffusion.variance"] == "learned"
    assert "diffusion.variance" not in foreign.assumed
    assert imported(foreign, Request()).model.network.out_channels == 6


def test_resampling_without_convolutions_is_seen(cifar10):
    tensors = {name: value for name, value in cifar10.items() if "sample" not in name}
    foreign = recognise(of(tensors), Request())
    assert foreign.fields["model.resampling"] == "pool"
    assert foreign.released_as == ""
    network = CIFAR10.clone(resampling="pool")
    assert "down_0_downsample" not in foreign.read(foreign.weights["raw"], network)


def test_names_are_those_of_the_port(container):
    unet = UNet(resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,))
    assert {port_name(path) for path in unet_shapes(unet, 3)} == set(container.groups["4"])
