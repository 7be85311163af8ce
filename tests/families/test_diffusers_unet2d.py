"""Directories of diffusers' unconditional pipelines, against outputs of diffusers' own code."""

import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.foreign_models import foreign_config
from ddpm_jax.experiments.scheduler_fields import sampler_options_in
from ddpm_jax.experiments.sizes import at_size
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.diffusers_unet2d import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container
from ddpm_jax.interop.diffusers import old_name, tensor_name, to_torch, unet_params_to_diffusers
from ddpm_jax.interop.diffusers_unet2d_config import unet2d_from_config, unet2d_to_config
from ddpm_jax.interop.diffusers_unet2d_shapes import (
    is_unet2d,
    options_from_shapes,
    unsaid_options,
)
from ddpm_jax.interop.renaming import unet_shapes
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.diffusers_levels import SchedulerOptions
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.tasks.guide import make_guide
from ddpm_jax.tasks.sampling_settings import Guidance

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/diffusers"
MODELS = sorted(path.name for path in GOLDENS.iterdir())
CHAINS = sorted(f"{path.parent.name}/{path.stem}" for path in GOLDENS.glob("*/dd*_steps.npz"))
NOTHING = Request()


def channels_last(x):
    return np.moveaxis(x, -3, -1)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def opened():
    """Return opened(name): what the family says of a golden directory."""
    made = {}

    def open_(name):
        if name not in made:
            made[name] = recognise(open_container(GOLDENS / name), NOTHING)
        return made[name]

    return open_


@pytest.mark.full
def test_outputs_are_those_of_diffusers(name, opened, imported):
    foreign = opened(name)
    model, params = imported(foreign, NOTHING)
    for file, kind in (("forward", "raw"), ("forward_ema", "ema")):
        if not (GOLDENS / name / f"{file}.npz").exists():
            continue
        golden = np.load(GOLDENS / name / f"{file}.npz")
        for case in sorted({key.split("/")[0] for key in golden}):
            label = golden.get(f"{case}/class_labels")
            ours = jax.jit(model.network.apply)(
                {"params": params[kind]},
                channels_last(golden[f"{case}/sample"]),
                golden[f"{case}/timestep"],
                None if label is None else Condition(label=label),
            )
            theirs = channels_last(golden[f"{case}/out"])
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=f"{file} {case}")


def in_float32(chain):
    """Return the chain of the alphas_bar that diffusers multiplies in float32.

    1 - alphas_bar at t = 0 has four digits there, and the logarithm of a learned range needs them.
    """
    alphas_bar = np.cumprod(1 - chain.betas.astype(np.float32), dtype=np.float32).astype(np.float64)
    return Chain(1 - alphas_bar / np.concatenate([[1.0], alphas_bar[:-1]]))


@pytest.mark.full
@pytest.mark.parametrize("name", CHAINS)
def test_chains_with_given_noise_are_those_of_diffusers(name, opened, imported):
    directory, of = name.split("/")
    model, params = imported(opened(directory), NOTHING)
    params = jax.tree.map(jnp.asarray, params["raw"])
    golden = np.load(GOLDENS / f"{name}.npz")
    kind, steps = "ancestral" if of.startswith("ddpm") else "ddim", len(golden["timesteps"])
    options = {"eta": 0.6} if "eta" in of else {}
    is_learned = model.process.variance.learned
    chain = in_float32(model.chain) if is_learned else model.chain
    sampler = make_sampler(kind, chain, steps=steps, options=options, levels="diffusers")
    np.testing.assert_array_equal(sampler.schedule.timesteps[::-1], golden["timesteps"])
    # DDIM of diffusers keeps eps where it clips x_0; `use_clipped_model_output` derives it again
    clip = "keep_eps" if kind == "ddim" and "clipped" not in of else "static"
    process = make_process(chain, model.process.parameterization.name, model.process.variance.name)
    denoiser = process.denoiser(
        lambda *inputs: model.network.apply({"params": params}, *inputs),
        sampler.schedule,
        clip=clip,
    )
    if "class_labels" in golden:
        denoiser = denoiser.given(Condition(label=jnp.asarray(golden["class_labels"])))
    noise = None
    if "noise" in golden:  # ancestral sampling draws none in its last step
        noise = np.zeros((steps, *golden["initial_noise"].shape), np.float32)
        noise[: len(golden["noise"])] = golden["noise"]
        noise = channels_last(noise)
    frames = jax.jit(
        lambda x_T: sample(denoiser, sampler, x_T, step_noise=noise, trajectory=True).frames_x_t
    )(channels_last(golden["initial_noise"]))
    # the goldens' README: a kept eps is divided by sigma at the last levels
    limit = 1e-4 if clip == "keep_eps" else 1e-5
    np.testing.assert_allclose(frames[1:], channels_last(golden["states"]), rtol=limit, atol=limit)


def test_written_back_every_tensor_is_the_same(name, opened, imported):
    foreign = opened(name)
    model, params = imported(foreign, NOTHING)
    for kind, tensors in foreign.weights.items():
        back = foreign.write(params[kind], model.network)
        assert back.keys() == tensors.keys()
        for tensor, value in tensors.items():
            np.testing.assert_array_equal(back[tensor], value, err_msg=tensor)


def read_json(path):
    return json.loads((GOLDENS / path).read_text())


CONFIG = read_json("class_conditional/unet/config.json")
SCHEDULER = read_json("class_conditional/scheduler/scheduler_config.json")
INDEX = read_json("class_conditional/model_index.json")
OF_DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "beta_end": 0.012,
    "clip_sample": True,
    "num_train_timesteps": 200,
    "prediction_type": "sample",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_spacing": "trailing",
}


@pytest.fixture(scope="module")
def tensors():
    return open_container(GOLDENS / "class_conditional").groups["unet"]


def of(tensors, config=CONFIG, scheduler=SCHEDULER, index=INDEX, **groups):
    """Return the container of a pipeline whose parts may be others."""
    facts = {
        "model_index.json": index,
        "unet/config.json": config,
        "scheduler/scheduler_config.json": scheduler,
    }
    facts |= {f"{group}/config.json": config for group in groups}
    facts = {name: fact for name, fact in facts.items() if fact is not None}
    return Container(pathlib.Path("mine"), "a directory", {"unet": tensors, **groups}, facts)


def test_a_pipeline_says_all_of_its_network_and_process(tensors):
    foreign = recognise(of(tensors), NOTHING)
    assert foreign.assumed == {}
    assert foreign.unread == ()
    assert list(foreign.weights) == ["raw"]
    expected = {
        "data.image_size": 12,
        "data.channels": 1,
        "diffusion.num_timesteps": 500,
        "diffusion.schedule": "cosine",
        "diffusion.parameterization": "v",
        "diffusion.variance": "fixed_small",
        "diffusion.clip": "static",
        "condition.num_classes": 10,
        "condition.null_class": False,
        "model.ch_mult": (1, 1),
        "model.attn_resolutions": (6,),
        "model.head_channels": 16,
        "model.time_embedding": "cos_sin",
    }
    assert {name: foreign.fields[name] for name in expected} == expected


def test_a_scheduler_of_ddim_names_no_variance_and_its_steps_are_those_of_diffusers_levels(tensors):
    index = INDEX | {"_class_name": "DDIMPipeline"}
    foreign = recognise(of(tensors, scheduler=OF_DDIM, index=index), NOTHING)
    assert foreign.fields["diffusion.clip"] == "keep_eps"
    assert foreign.fields["diffusion.schedule"] == "scaled_linear"
    assert foreign.fields["diffusion.beta_end"] == 0.012
    assert foreign.fields["diffusion.parameterization"] == "x_0"
    assert {name: guess.value for name, guess in foreign.assumed.items()} == {
        "diffusion.variance": "fixed_small"
    }
    config = foreign_config(foreign, NOTHING)
    trailing = SchedulerOptions(spacing="trailing", steps_offset=1, set_alpha_to_one=False)
    assert sampler_options_in(config) == trailing
    usual = foreign_config(recognise(of(tensors), NOTHING), NOTHING)
    assert sampler_options_in(usual) == SchedulerOptions()
    unclipped = recognise(of(tensors, scheduler=OF_DDIM | {"clip_sample": False}), NOTHING)
    assert unclipped.fields["diffusion.clip"] == "none"


def test_a_network_alone_is_assumed_to_have_the_process_of_ddpm(tensors):
    facts = {"config.json": CONFIG}
    alone = Container(pathlib.Path("unet"), "a directory", {"": tensors}, facts)
    foreign = recognise(alone, Request(fields={"diffusion.num_timesteps": 500}))
    assert foreign.assumed["diffusion.schedule"].value == "linear"
    assert foreign.assumed["diffusion.variance"].value == "fixed_small"
    assert "diffusion.num_timesteps" not in foreign.assumed | foreign.fields  # the user said it
    assert foreign.fields["model.ch"] == 32


def test_files_that_all_lie_in_one_directory_are_one_pipeline(tensors):
    facts = {
        "model_index.json": INDEX,
        "config.json": CONFIG,
        "scheduler_config.json": SCHEDULER,
    }
    flat = Container(pathlib.Path("google"), "a directory", {"": tensors}, facts)
    assert recognise(flat, NOTHING).fields == recognise(of(tensors), NOTHING).fields


def test_an_average_is_known_by_its_folder_or_by_what_its_training_wrote(tensors):
    both = recognise(of(tensors, unet_ema=tensors), NOTHING)
    assert list(both.weights) == ["raw", "ema"]
    facts = {"config.json": CONFIG | {"optimization_step": 5, "decay": 0.9999}}
    alone = Container(pathlib.Path("unet_ema"), "a directory", {"": tensors}, facts)
    assert list(recognise(alone, NOTHING).weights) == ["ema"]


def test_old_names_of_attention_are_read_and_written_again(tensors, imported):
    renamed = {old_name(name): value for name, value in tensors.items()}
    assert "mid_block.attentions.0.proj_attn.weight" in renamed
    foreign = recognise(of(renamed), NOTHING)
    model, params = imported(foreign, NOTHING)
    back = foreign.write(params["raw"], model.network)
    assert back.keys() == renamed.keys()
    for name, value in renamed.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_last_class_is_the_null_class_if_the_user_says_so(tensors, imported):
    request = Request(fields={"condition.null_class": True})
    foreign = recognise(of(tensors), request)
    assert foreign.fields["condition.num_classes"] == 9
    model, params = imported(foreign, request)
    assert params["raw"]["class_embedding"]["embedding"].shape == (10, 128)
    assert model.network.num_classes == 9


def test_a_size_that_the_config_lacks_is_assumed_or_asked_for(tensors):
    unsaid = CONFIG | {"sample_size": None}
    foreign = recognise(of(tensors, unsaid), NOTHING)
    assert foreign.assumed["data.image_size"].value == 64
    assert foreign.fields["model.attn_resolutions"] == (32,)
    asked = Request(fields={"data.image_size": 28})
    for config in (unsaid, CONFIG | {"sample_size": [24, 28]}):
        foreign = recognise(of(tensors, config), asked)
        assert "data.image_size" not in foreign.assumed
        assert foreign.fields["model.attn_resolutions"] == (14,)


def test_files_of_other_networks_are_not_of_this_family(tensors):
    conditional = CONFIG | {"_class_name": "UNet2DConditionModel"}
    assert recognise(of(tensors, conditional), NOTHING) is None
    lacking = {name: value for name, value in tensors.items() if name != "conv_norm_out.weight"}
    assert recognise(of(lacking), NOTHING) is None
    of_text = {**tensors, "mid_block.attentions.0.transformer_blocks.0.norm1.weight": np.zeros(32)}
    state_dict = Container(pathlib.Path("a.bin"), "a file", {"": of_text}, {})
    assert recognise(state_dict, NOTHING) is None


LEARNED = {"variance_type": "learned_range"}
SMALL = {
    "sample_size": 16,
    "in_channels": 3,
    "block_out_channels": [32, 48, 64],
    "layers_per_block": 2,
    "norm_num_groups": 16,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
MODES = {  # options that names and shapes of tensors show
    "blocks between levels": {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "downsample_type": "resnet",
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "out_channels": 6},
    "a norm in the middle": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 16,
    },
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "grey, by class": {"in_channels": 1, "out_channels": 1, "num_class_embeds": 4},
    "heads that do not divide": {
        "block_out_channels": [16, 20, 20],
        "norm_num_groups": 4,
        "attention_head_dim": None,
    },
}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"config": CONFIG | {"act_fn": "mish"}}, "act_fn"),
        ({"config": CONFIG | {"in_channels": 4}}, "in_channels .* 4: 1 and 3"),
        ({"config": CONFIG | {"out_channels": 3}}, "out_channels .* 3: 1 are expected, or 2"),
        ({"scheduler": SCHEDULER | LEARNED}, "variance_type .* learned_range, .* 1 out_channels"),
        ({"config": CONFIG | {"out_channels": 2}}, "variance_type .* fixed_small, .* 2 out_ch"),
        ({"scheduler": SCHEDULER | {"variance_type": "learned"}}, "variance_type"),
        ({"scheduler": SCHEDULER | {"variance_type": "fixed_large_log"}}, "variance_type"),
        ({"scheduler": SCHEDULER | {"trained_betas": [0.1] * 500}}, "trained_betas"),
        ({"scheduler": SCHEDULER | {"thresholding": True}}, "thresholding"),
        ({"scheduler": SCHEDULER | {"rescale_betas_zero_snr": True}}, "rescale_betas_zero_snr"),
        ({"scheduler": SCHEDULER | {"clip_sample_range": 2.0}}, "clip_sample_range"),
        ({"scheduler": SCHEDULER | {"beta_schedule": "laplace"}}, "beta_schedule"),
        ({"scheduler": SCHEDULER | {"_class_name": "RePaintScheduler"}}, "RePaintScheduler"),
        ({"index": INDEX | {"_class_name": "LDMPipeline"}}, "LDMPipeline"),
        ({"index": INDEX | {"_class_name": ["DDPMPipeline"]}}, "DDPMPipeline"),
    ],
)
def test_what_cannot_be_had_exactly_is_refused_by_its_name(parts, words, tensors):
    with pytest.raises(UsageError, match=words):
        recognise(of(tensors, **parts), NOTHING)


def test_a_learned_range_without_a_scheduler_is_known_by_the_channels(tensors):
    config = CONFIG | {"out_channels": 2}
    foreign = recognise(of(tensors, config, scheduler=None), NOTHING)
    assert foreign.assumed["diffusion.variance"].value == "learned_range"
    assert foreign.assumed["diffusion.loss"].value == "hybrid"


def test_two_configs_that_differ_and_several_networks_are_refused(tensors):
    container = of(tensors, unet_ema=tensors)
    container.facts["unet_ema/config.json"] = CONFIG | {"norm_eps": 1e-6}
    with pytest.raises(UsageError, match=r"norm_eps is 1e-05 .* and 1e-06 in that of its average"):
        recognise(container, NOTHING)
    with pytest.raises(UsageError, match="several networks"):
        recognise(of(tensors, unet_2=tensors), NOTHING)
    with pytest.raises(UsageError, match="preset guided_64"):
        recognise(of(tensors), Request(preset="guided_64"))


def test_a_state_dict_alone_says_its_blocks_and_what_it_does_not_say_is_assumed(tensors, imported):
    whole = recognise(of(tensors), NOTHING)
    parallel = {f"module.{name}": value for name, value in tensors.items()}
    groups = {"model": parallel, "ema_model": tensors}
    alone = Container(pathlib.Path("model.pt"), "a file of PyTorch", groups, {"step": 5})
    request = Request(fields={"data.image_size": 12, "model.head_channels": 16})
    foreign = recognise(alone, request)
    assert {name: guess.value for name, guess in foreign.assumed.items()} == {
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": "linear",
        "diffusion.beta_start": 1e-4,
        "diffusion.beta_end": 0.02,
        "diffusion.parameterization": "eps",
        "diffusion.variance": "fixed_small",
        "diffusion.clip": "static",
        "model.downsample_padding": "both",
        "model.dropout": 0.0,
        "model.norm_eps": 1e-5,
        "model.norm_groups": 32,
        "model.time_embedding": "cos_sin",
    }
    assert list(foreign.weights) == ["raw", "ema"]
    model, params = imported(foreign, request)
    assert model.network == imported(whole, NOTHING).model.network
    back = foreign.write(params["raw"], model.network)
    assert back.keys() == tensors.keys()


@pytest.mark.full
def test_a_state_dict_of_old_names_is_taken_for_one_of_google(tensors):
    unet = UNet()
    params = {}
    for path, shape in unet_shapes(unet, 3).items():
        group = params
        for module in path[:-1]:
            group = group.setdefault(module, {})
        group[path[-1]] = np.broadcast_to(np.float32(0), shape)  # takes no memory
    names = unet_params_to_diffusers(params, unet)
    assert sum(value.size for value in names.values()) == 35_746_307  # of the original's graph
    old = {old_name(name): value for name, value in names.items()}
    foreign = recognise(Container(pathlib.Path("a.bin"), "a file", {"": old}, {}), NOTHING)
    assert foreign.released_as == "DDPM on CIFAR-10"
    assert foreign.assumed["data.image_size"].value == 32
    assert foreign.assumed["model.downsample_padding"].value == "end"
    assert foreign.fields["model.attn_resolutions"] == (16,)
    # a config says so itself
    written = unet2d_to_config(unet, 32, 3)
    assert recognise(of(names, written, scheduler=None), NOTHING).released_as == "DDPM on CIFAR-10"
    assert recognise(of(tensors), NOTHING).released_as == ""


@pytest.mark.parametrize("options", [{}, *MODES.values()], ids=["usual", *MODES])
def test_options_that_shapes_decide_are_those_of_the_config(options):
    config = SMALL | options
    unet = unet2d_from_config(config)
    shapes = {
        tensor_name(path, len(unet.ch_mult)): to_torch(path, np.broadcast_to(0, shape)).shape
        for path, shape in unet_shapes(unet, config["in_channels"]).items()
    }
    assert is_unet2d(shapes)
    unsaid = {name: config[name] for name in unsaid_options(shapes)[0] if name in config}
    again = options_from_shapes(shapes) | unsaid_options(shapes)[0] | unsaid
    assert unet2d_from_config(again, 16) == unet


ODD = (None, True, False, 0, -1, 1, 7, 3.5, 1e300, 2**62, "", "conv", [], [0], [[1]], {}, {"a": 1})


def test_configs_with_any_value_in_them_are_read_or_refused_in_a_sentence(tensors):
    rng = random.Random(0)
    outcomes = set()
    for _ in range(600):
        parts = {"config": dict(CONFIG), "scheduler": dict(SCHEDULER), "index": dict(INDEX)}
        for _ in range(rng.choice((1, 1, 2))):
            part = parts[rng.choice(("config", "config", "scheduler", "index"))]
            name = rng.choice((*part, "an_option_of_tomorrow"))
            value = part.get(name)
            if isinstance(value, list) and value and rng.random() < 0.5:
                value = [*value]
                value[rng.randrange(len(value))] = rng.choice(ODD)
                part[name] = value
            elif rng.random() < 0.1:
                part.pop(name, None)
            else:
                part[name] = rng.choice(ODD)
        try:
            foreign = recognise(of(tensors, **parts), NOTHING)
            if foreign is not None:
                build(foreign_config(foreign, NOTHING))
            outcomes.add("read")
        except UsageError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.full
def test_tensors_of_any_shape_are_read_or_refused_in_a_sentence(tensors):
    rng = random.Random(0)
    outcomes = set()
    for _ in range(60):
        damaged = dict(tensors)
        for name in rng.sample(sorted(damaged), rng.choice((1, 2, 8))):
            del damaged[name]
            if rng.random() < 0.8:
                shape = rng.choices((0, 1, 3, 32, 64), k=rng.randrange(6))
                damaged[rng.choice((name, name.replace("0", "1"), name[:-1]))] = np.zeros(shape)
        container = Container(pathlib.Path("a.pt"), "a file of PyTorch", {"": damaged}, {})
        try:
            foreign = recognise(container, NOTHING)
            if foreign is not None:
                foreign.read(damaged, build(foreign_config(foreign, NOTHING)).network)
            outcomes.add("read")
        except UsageError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_model_without_a_null_class_is_not_guided_to_classes(tensors, imported):
    model, params = imported(recognise(of(tensors), NOTHING), NOTHING)
    trained = TrainedModel(model, Weights(params["raw"]), 0, "raw")
    assert make_guide(trained, Guidance()).kind == "none"
    with pytest.raises(UsageError, match=r"no null class \(condition\.null_class is false\)"):
        make_guide(trained, Guidance(scale=3.0))


def test_a_network_that_averages_pixels_takes_sizes_that_it_can_halve(opened, imported):
    # the way up of a convolution that pads on both sides would follow odd sizes
    model, _ = imported(opened("class_conditional"), NOTHING)
    assert at_size(model, 13, 15).image_shape == (13, 15, 1)
    model, _ = imported(opened("scale_shift_resnet"), NOTHING)  # a residual block doubles there
    with pytest.raises(UsageError, match="height is 13: give a multiple of 2"):
        at_size(model, 13, 16)
