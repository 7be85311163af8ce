"""State dicts of improved-diffusion and guided-diffusion, against outputs of that code."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.families.foreign import Request
from ddpm_jax.families.openai_unet import recognise
from ddpm_jax.interop.containers import open_container
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

from .openai_files import changed, config_of, of, zeros

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/openai"
REQUESTS = {  # what these files do not tell
    "improved_cifar_like": Request(
        {
            "data.image_size": 16,
            "diffusion.num_timesteps": 4000,
            "diffusion.schedule": "cosine",
        }
    ),
    "guided_64_like": Request(
        {
            "data.image_size": 16,
            "diffusion.schedule": "cosine",
            "model.head_channels": 16,
            "model.qkv_order": "maps",
        }
    ),
}


@pytest.fixture(scope="module", params=REQUESTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def foreign(name):
    return recognise(open_container(GOLDENS / name / "model.pt"), REQUESTS[name])


@pytest.fixture(scope="module")
def network(name, foreign, imported):
    """Return the model and a function (x, t, labels) -> output, compiled."""
    model, params = imported(foreign, REQUESTS[name])

    @jax.jit
    def apply(params, x, t, labels):
        return model.network.apply({"params": params}, x, t, condition(labels))

    return model, functools.partial(apply, params["raw"])


def condition(labels):
    return None if labels is None else Condition(label=labels)


def golden(name, file):
    """Return the arrays of a file in our layout, with the labels None where there are none."""
    arrays = dict(np.load(GOLDENS / name / file))
    images = ("x", "out", "initial_noise", "noise", "states")
    return {"y": None} | {
        key: np.moveaxis(value, -3, -1) if key in images else value for key, value in arrays.items()
    }


def test_outputs_are_those_of_the_reference(name, network):
    _, apply = network
    expected = golden(name, "forward.npz")
    actual = apply(expected["x"], expected["t"], expected["y"])
    np.testing.assert_allclose(actual, expected["out"], rtol=0, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "sampler", "spacing"),
    [
        ("improved_cifar_like", "ddim", "leading"),  # there "ddim10"
        ("guided_64_like", "ancestral", "sections:10"),  # there "10"
    ],
    indirect=["name"],
)
def test_chains_are_those_of_the_reference(name, network, sampler, spacing):
    model, apply = network
    expected = golden(name, f"{sampler}_10_steps.npz")
    steps = 10 if spacing == "leading" else None
    sampler = make_sampler(sampler, model.chain, steps=steps, spacing=spacing)
    times = np.asarray(sampler.schedule.timesteps)
    np.testing.assert_allclose(times, expected["timestep_map"] * model.chain.time_scale, rtol=1e-6)
    denoiser = model.process.denoiser(
        lambda x, t: apply(x, t, expected["y"]), sampler.schedule, clip="static"
    )
    noise = expected["noise"] if sampler.draws else None
    result = sample(denoiser, sampler, expected["initial_noise"], step_noise=noise, trajectory=True)
    np.testing.assert_allclose(result.frames_x_t[1:], expected["states"], rtol=0, atol=1e-4)


def test_written_back_every_tensor_is_the_same(name, foreign, imported):
    model, params = imported(foreign, REQUESTS[name])
    tensors = foreign.weights["raw"]
    back = foreign.write(params["raw"], model.network)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


OPENAIS = {"time_embedding": "cos_sin", "norm_eps": 1e-5, "downsample_padding": "both"}
IMPROVED = OPENAIS | {"scale_shift_norm": True, "out_channels": 6}
GUIDED = IMPROVED | {"resampling": "block", "null_class": False}
AT_256 = {"resolution": 256, "ch_mult": (1, 1, 2, 2, 4, 4)}
CIFAR10 = UNet(num_res_blocks=3, attn_resolutions=(16, 8), **IMPROVED)
RELEASED_NETWORKS = {  # written out from the flags that are published
    "cifar10_uncond_50M_500K or cifar10_uncond_vlb_50M_500K": CIFAR10,
    "lsun_uncond_100M_1200K_bs128 or lsun_uncond_100M_2400K_bs64": UNet(
        **AT_256, **IMPROVED | {"scale_shift_norm": False}
    ),
    "upsample_cond_500K": UNet(
        **AT_256,
        **IMPROVED,
        ch=192,
        attn_resolutions=(16, 8),
        num_classes=1000,
        null_class=False,
        low_res_channels=3,
    ),
    "64x64_diffusion": UNet(
        resolution=64,
        ch=192,
        ch_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attn_resolutions=(32, 16, 8),
        num_classes=1000,
        **GUIDED,
    ),
    "256x256_diffusion_uncond or lsun_bedroom or lsun_cat or lsun_horse or "
    "lsun_horse_nodropout": UNet(
        **AT_256, ch=256, attn_resolutions=(32, 16, 8), **GUIDED | {"null_class": True}
    ),
    "512x512_diffusion": UNet(
        resolution=512,
        ch=128,
        ch_mult=(1, 2, 2, 4, 4, 8, 8),
        time_channels=256,
        attn_resolutions=(32, 16, 8),
        num_classes=1000,
        **GUIDED,
    ),
    "128_512_upsampler": UNet(
        **AT_256 | {"resolution": 512},
        ch=192,
        attn_resolutions=(32, 16),
        num_classes=1000,
        low_res_channels=3,
        **GUIDED,
    ),
}
COUNTS = {  # of others, who have counted the parameters in the files, and of the papers
    "cifar10_uncond_50M_500K": 52.5e6,
    # DDPM's network of the same size (tests/models/test_unet.py), and 3 channels more
    "lsun_uncond_100M_1200K_bs128": 113_673_219 + 3 * (9 * 128 + 1),
    "upsample_cond_500K": 280e6,
    "64x64_diffusion": 296e6,
    "256x256_diffusion_uncond": 552_814_086,
    "512x512_diffusion": 559e6,
    "128_512_upsampler": 309e6,
}


@pytest.mark.slow
@pytest.mark.parametrize("names", RELEASED_NETWORKS)
def test_released_models_are_known_by_their_sizes(names):
    network = RELEASED_NETWORKS[names]
    tensors = zeros(network, 3 + network.low_res_channels)
    first = names.split(" or ")[0]
    assert sum(x.size for x in tensors.values()) == pytest.approx(COUNTS[first], rel=2e-3)
    foreign = recognise(of(tensors), Request())
    assert foreign.released_as == names
    model = build(config_of(foreign))
    heads = {"num_heads", "head_channels", "num_heads_up", "qkv_order", "dropout"}
    for field in dataclasses.fields(UNet):
        if field.name not in heads | {"parent", "name"}:
            there = getattr(model.network, field.name)
            assert there == getattr(network, field.name), field.name


@pytest.fixture(scope="module")
def cifar10():
    return zeros(CIFAR10)


def test_the_released_model_of_cifar10_has_its_published_settings(cifar10):
    foreign = recognise(of(cifar10), Request())
    config = config_of(foreign)
    assert config.data.image_size == 32
    assert (config.diffusion.schedule, config.diffusion.num_timesteps) == ("cosine", 4000)
    assert config.diffusion.rescale_timesteps
    assert (config.diffusion.variance, config.diffusion.loss) == ("learned_range", "hybrid")
    assert (config.model.num_heads, config.model.dropout) == (4, 0.3)
    assert all("cifar10_uncond_50M_500K" in guess.why for guess in foreign.assumed.values())


def test_the_name_of_a_file_tells_released_models_of_one_architecture_apart(cifar10):
    foreign = recognise(of(cifar10, "cifar10_uncond_vlb_50M_500K.pt"), Request())
    assert foreign.released_as == "cifar10_uncond_vlb_50M_500K"
    assert foreign.assumed["diffusion.loss"].value == "vlb"
    # but it alone tells nothing
    foreign = recognise(of(cifar10, "64x64_diffusion.pt"), Request())
    assert foreign.released_as.startswith("cifar10_uncond_50M_500K")


def test_a_preset_is_a_released_model_of_this_architecture(cifar10):
    request = Request(preset="cifar10_uncond_vlb_50M_500K")
    assert recognise(of(cifar10), request).assumed["diffusion.loss"].value == "vlb"
    with pytest.raises(UsageError, match="not lsun_cat: ch of its network is 128, and 256 of that"):
        recognise(of(cifar10), Request(preset="lsun_cat"))
    begun = recognise(of(cifar10), Request(preset="cifar10_uncond"))
    assert begun.released_as == "cifar10_uncond_50M_500K or cifar10_uncond_vlb_50M_500K"
    with pytest.raises(UsageError, match=r"is none of imagenet64_uncond_100M_1500K, .*other sizes"):
        recognise(of(cifar10), Request(preset="imagenet64"))
    with pytest.raises(UsageError, match=r"Unknown preset 'lsun_cats'.* Did you mean 'lsun_cat'"):
        recognise(of(cifar10), Request(preset="lsun_cats"))


def test_what_the_user_says_is_not_assumed(cifar10):
    said = {"data.image_size": 64, "model.head_channels": 32, "diffusion.num_timesteps": 1000}
    foreign = recognise(of(cifar10), Request(said))
    assert not foreign.assumed.keys() & {*said, "model.num_heads"}
    assert foreign.fields["model.attn_resolutions"] == (32, 16)
    assert build(config_of(foreign, **said)).network.heads == (4, 8, 8, 8)


def test_averages_of_training_are_told_by_the_name_of_their_file(cifar10):
    kinds = {
        name: list(recognise(of(cifar10, name), Request()).weights)
        for name in ("ema_0.9999_500000.pt", "model500000.pt", "cinema.pt")
    }
    assert list(kinds.values()) == [["ema"], ["raw"], ["raw"]]


def test_the_last_of_their_classes_may_be_a_null_class(foreign, name):
    container = open_container(GOLDENS / name / "model.pt")
    request = Request({**REQUESTS[name].fields, "condition.null_class": True})
    fields = recognise(container, request).fields
    classes = foreign.fields["condition.num_classes"]
    assert fields["condition.num_classes"] == max(0, classes - 1)
    assert fields.get("condition.null_class", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_blocks__5__1__encoder_kv__weight": (2, 2, 1)}, "encoder_kv.weight, which no"),
        ({"out__2__weight": (12, 128, 3, 3)}, r"takes 3 channels and out\.2\.weight gives 12"),
        ({"input_blocks__0__0__weight": (128, 4, 3, 3)}, "takes 4 channels"),
        ({"input_blocks__0__0__weight": (96, 3, 3, 3)}, "gives 96 channels: the 128 of"),
        ({"time_embed__0__weight": (500, 128)}, "500 features: 512 are"),
        ({"time_embed__0__weight": (512,)}, r"time_embed\.0\.weight .* \[512\]: 2 dimensions"),
        ({"input_blocks__1__0__emb_layers__1__weight": (300, 512)}, "gives 300 features: 128"),
        ({"input_blocks__3__0__op__weight": (1,)}, "16 input_blocks, .* level ends at number 3"),
        ({"out__2__weight": None}, r"lacks out\.2\.weight"),
        ({"input_blocks__999__0__op__weight": (1,)}, r"lacks input_blocks\.17\.0\.out_layers"),
    ],
)
def test_what_is_none_of_our_networks_is_refused_with_its_first_tensor(cifar10, changes, words):
    with pytest.raises(UsageError, match=words):
        recognise(of(changed(cifar10, **changes)), Request())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_blocks__3__1__qkv__bias": None}, r"lacks input_blocks\.3\.1\.qkv \(k\)\.bias"),
        ({"input_blocks__3__1__qkv__weight": (6, 6, 1)}, r"input_blocks\.3\.1\.qkv \(k\)\.weight"),
        ({"input_blocks__2__1__norm__bias": (32,)}, r"beyond .* input_blocks\.2\.1\.norm\.bias"),
        ({"out__0__bias": (64,)}, r"out\.0\.bias .* has shape \(64,\)"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named_when_it_is_read(changes, words):
    tensors = dict(open_container(GOLDENS / "guided_64_like/model.pt").groups[""])
    said = {"data.image_size": 16}
    foreign = recognise(of(changed(tensors, **changes)), Request(said))
    with pytest.raises(UsageError, match=words):
        foreign.read(foreign.weights["raw"], build(config_of(foreign, **said)).network)


def test_files_of_others_are_not_recognised(cifar10):
    stable_diffusion = {f"model.diffusion_model.{name}": x for name, x in cifar10.items()}
    transformers = changed(cifar10, middle_block__1__qkv__weight=None)
    encoder = {name: x for name, x in cifar10.items() if not name.startswith("output_blocks")}
    for tensors in (stable_diffusion, transformers, encoder, {"x": np.zeros(1)}, {}):
        assert recognise(of(tensors), Request()) is None
