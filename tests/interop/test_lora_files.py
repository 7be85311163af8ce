"""Files of low-rank updates: names of PEFT, of diffusers before it and of kohya's scripts."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.pipelines import load_text_encoder
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.diffusers_text_unet import text_unet_params_from_diffusers
from ddpm_jax.interop.lora_files import FILE, TEXT, UNET, add_lora, read_lora, write_lora
from ddpm_jax.interop.pipeline_params import pipeline_networks
from ddpm_jax.models.lora import init_lora, merge_lora
from ddpm_jax.randomness import base_key
from ddpm_jax.tasks.prompts import read_texts
from ddpm_jax.tasks.sampling_settings import Conditions

from ..conftest import GOLDENS

SD1 = GOLDENS / "sd/sd1"
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
PATHS = {
    Q: (UNET, "down_0_attn_0", "block_0", "attn1", "q", "kernel"),
    OUT: (UNET, "mid_attn_1", "block_0", "attn2", "proj_out", "kernel"),
}
OF_TEXT = {
    "text_model.encoder.layers.0.self_attn.out_proj": (TEXT, "block_0", "proj_out", "kernel"),
    "text_model.encoder.layers.1.self_attn.q_proj": (TEXT, "block_1", "q", "kernel"),
    "text_model.encoder.layers.1.mlp.fc2": (TEXT, "block_1", "mlp_dense1", "kernel"),
}


@pytest.fixture(scope="module")
def sd1():
    pipeline = read_pipeline(SD1)
    unet = pipeline_networks(pipeline).unet
    return unet, {
        UNET: text_unet_params_from_diffusers(pipeline.unet.tensors, unet),
        TEXT: load_text_encoder(pipeline).params,
    }


def drawn(unet, params, *, rank=3, targets="all"):
    """Updates of which B is not zero."""
    lora = init_lora(base_key(0), params[UNET], rank=rank, targets=targets)
    rng = np.random.default_rng(1)
    flat = {
        path: rng.normal(0, 0.1, leaf.shape).astype(np.float32) if path[-1] == "B" else leaf
        for path, leaf in flatten_dict(lora).items()
    }
    return unflatten_dict(flat)


def pairs(shapes, rank=2):
    """{map: (A, B)} in torch's layout."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.normal(size=(rank, shape[1])).astype(np.float32),
            rng.normal(size=(shape[0], rank)).astype(np.float32),
        )
        for name, shape in shapes.items()
    }


NAMES = {  # format -> the names of A, B and alpha of a map
    "peft": lambda m: (f"unet.{m}.lora_A.weight", f"unet.{m}.lora_B.weight", None),
    "peft, adapter": lambda m: (
        f"base_model.model.{m}.lora_A.default.weight",
        f"base_model.model.{m}.lora_B.default.weight",
        None,
    ),
    "diffusers": lambda m: (
        f"unet.{m}.lora.down.weight",
        f"unet.{m}.lora.up.weight",
        f"unet.{m}.alpha",
    ),
    "diffusers, processors": lambda m: (
        *(
            f"unet.{m.removesuffix('.0').replace('.to_', '.processor.to_')}_lora.{end}.weight"
            for end in ("down", "up")
        ),
        None,
    ),
    "kohya": lambda m: tuple(
        "lora_unet_" + m.replace(".", "_") + end
        for end in (".lora_down.weight", ".lora_up.weight", ".alpha")
    ),
}


def before_peft(module):
    layer, _, name = module.rpartition(".")
    place = f"text_encoder.{layer}.to_{name.removesuffix('_proj')}_lora"
    return f"{place}.down.weight", f"{place}.up.weight", None


def without_prefix(module):
    return NAMES_OF_TEXT["peft"](module.removeprefix("text_model."))


NAMES_OF_TEXT = {
    "peft": lambda m: (f"text_encoder.{m}.lora_A.weight", f"text_encoder.{m}.lora_B.weight", None),
    "peft of transformers 5": without_prefix,
    "peft, adapter": lambda m: NAMES["peft, adapter"](m),
    "peft, adapter of transformers 5": lambda m: NAMES["peft, adapter"](
        m.removeprefix("text_model.")
    ),
    "diffusers": lambda m: (
        f"text_encoder.{m}.lora_linear_layer.down.weight",
        f"text_encoder.{m}.lora_linear_layer.up.weight",
        f"text_encoder.{m}.alpha",
    ),
    "diffusers, processors": before_peft,
    "kohya": lambda m: tuple(
        "lora_te_" + m.replace(".", "_") + end
        for end in (".lora_down.weight", ".lora_up.weight", ".alpha")
    ),
}


def check_merged(sd1, tmp_path, names, paths, weights):
    """Checks a file of updates, drawn for each of the maps, against W + alpha / r B A."""
    unet, params = sd1
    shapes = {name: weights[f"{name}.weight"].shape for name in paths}
    tensors, alpha, given = {}, 5.0, pairs(shapes)
    for module, (a, b) in given.items():
        of_a, of_b, of_alpha = names(module)
        tensors |= {of_a: a, of_b: b}
        if of_alpha:
            tensors[of_alpha] = np.full((), alpha, np.float32)
    save_file(tensors, tmp_path / FILE)
    merged = flatten_dict(add_lora(tmp_path, params, unet, scale=0.5))
    scale = 0.5 * (alpha / 2 if of_alpha else 1.0)
    for module, (a, b) in given.items():
        wanted = weights[f"{module}.weight"].astype(float) + scale * b.astype(float) @ a.astype(
            float
        )
        np.testing.assert_allclose(merged[paths[module]], wanted.T, rtol=0, atol=2e-6)
    for path, value in flatten_dict(params).items():
        if path not in paths.values():
            np.testing.assert_array_equal(merged[path], value)


@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
def test_a_map_becomes_w_plus_alpha_over_r_b_a(sd1, tmp_path, names):
    weights = load_file(SD1 / "unet/diffusion_pytorch_model.safetensors")
    check_merged(sd1, tmp_path, names, PATHS, weights)


@pytest.mark.parametrize("names", NAMES_OF_TEXT.values(), ids=list(NAMES_OF_TEXT))
def test_so_does_a_map_of_the_text_encoder(sd1, tmp_path, names):
    weights = load_file(SD1 / "text_encoder/model.safetensors")
    of_attention = {name: path for name, path in OF_TEXT.items() if "attn" in name}
    paths = of_attention if names is before_peft else OF_TEXT
    check_merged(sd1, tmp_path, names, paths, weights)


def test_alpha_in_the_metadata_of_peft_counts(sd1, tmp_path):
    weights = load_file(SD1 / "unet/diffusion_pytorch_model.safetensors")
    shapes = {name: weights[f"{name}.weight"].shape for name in PATHS}
    tensors = {}
    for module, (a, b) in pairs(shapes).items():
        tensors |= dict(zip(NAMES["peft"](module), (a, b), strict=False))
    of_text = f"text_encoder.{next(iter(OF_TEXT))}"
    tensors |= {f"{of_text}.lora_A.weight": a, f"{of_text}.lora_B.weight": b}
    pattern = f"no_such_map|{Q.split('.', 1)[1]}"  # PEFT has regular expressions of the names' ends
    said = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 3}}
    said |= {"text_encoder.lora_alpha": 5}
    save_file(tensors, tmp_path / FILE, {"lora_adapter_metadata": json.dumps(said)})
    found = read_lora(tmp_path / FILE)
    scales = {name: update.scale for name, update in found.items()}
    assert scales == {Q: 1.5, OUT: 4.0, of_text: 2.5}


@pytest.mark.full
@pytest.mark.filterwarnings("default:.*is_gradient_checkpointing:FutureWarning")  # asked by peft
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_a_text_encoder_is_read_as_peft_merges_it(sd1, tmp_path, rslora):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    unet, params = sd1
    theirs = transformers.CLIPTextModel.from_pretrained(SD1 / "text_encoder")
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["q_proj", "fc1"],
        alpha_pattern={"layers.1.self_attn.q_proj|layers.0.mlp.fc1": 3},  # regular expressions
    )
    adapted = peft.get_peft_model(theirs, config)
    rng = np.random.default_rng(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.tensor(rng.normal(size=parameter.shape).astype(np.float32))
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload().state_dict()
    found = flatten_dict(add_lora(tmp_path, params, unet)[TEXT])
    before = flatten_dict(params[TEXT])
    # of which transformers 5 leaves out "text_model."
    place = next(name for name in merged if name.endswith("layers.0.mlp.fc1.weight"))
    for layer in range(2):
        for ours, their in (("q", "self_attn.q_proj"), ("mlp_dense0", "mlp.fc1")):
            name = place.replace("layers.0.mlp.fc1", f"layers.{layer}.{their}")
            path = (f"block_{layer}", ours, "kernel")
            assert np.abs(found[path] - before[path]).max() > 0.1
            np.testing.assert_allclose(found[path], merged[name].numpy().T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_alpha": "8"}, "adapter_config.json is damaged: its lora_alpha is no number"),
        ({"alpha_pattern": [1]}, "or its alpha_pattern no table"),
        ({"alpha_pattern": {"(": 1}}, "or its alpha_pattern no table"),
        ({"use_dora": True}, "was made with use_dora"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the network's own weights"),
    ],
)
def test_settings_of_peft_that_cannot_be_followed_are_refused(tmp_path, config, says):
    a, b = (f"base_model.model.{Q}.lora_{role}.weight" for role in "AB")
    ones = np.ones((2, 2), np.float32)
    save_file({a: ones, b: ones}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=says):
        read_lora(tmp_path)


def test_a_file_or_a_directory_without_updates_is_called_that(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UsageError, match=r"empty.safetensors has no updates: there is no tensor"):
        read_lora(tmp_path / "empty.safetensors")
    with pytest.raises(UsageError, match=r"has no low-rank updates \(LoRA\), which are called"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora": "l", "lora_scale": float("nan")}, "lora_scale is nan: it must be a number in"),
        ({"lora": "l", "lora_scale": -1}, "lora_scale is -1: it must be a number in 0..100"),
        ({"lora": "l", "lora_scale": "x"}, "lora_scale is 'x': "),
        ({"lora": 3}, "lora is 3: it must be a text"),
        ({"lora_scale": 2.0}, "lora_scale is 2, and there is no lora"),
    ],
)
def test_a_factor_out_of_range_is_refused_before_anything_is_read(given, says):
    with pytest.raises(UsageError, match=says):
        ddpm_jax.load("nowhere", **given)


def test_weights_of_stable_diffusion_that_are_not_finite_are_named_with_their_files(tmp_path):
    shutil.copytree(SD1, tmp_path / "sd")
    file = tmp_path / "sd/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"] = np.full_like(weights["conv_in.bias"], np.nan)
    save_file(weights, file)
    with pytest.raises(
        UsageError, match=r"/sd: conv_in\.bias of .* nan, which is no finite number"
    ):
        ddpm_jax.load(tmp_path / "sd")


def test_a_path_that_is_none_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match=r"^123 is no path: give the name of a file"):
        ddpm_jax.load(123)


@pytest.mark.full
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_what_is_written_is_read_as_the_merged_network(sd1, tmp_path, targets):
    unet, params = sd1
    lora = drawn(unet, params, targets=targets)
    write_lora(tmp_path / FILE, lora, unet, scale=1.5)
    found = flatten_dict(add_lora(tmp_path / FILE, params, unet))
    wanted = flatten_dict(params | {UNET: merge_lora(params[UNET], lora, 1.5)})
    changed = 0
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-6)
        changed += not np.array_equal(value, flatten_dict(params)[path])
    # 5 transformers of one block: 2 on each way down, 1 in the middle, 3 on each way up
    assert changed == 11 * (8 if targets == "attention" else 12)


@pytest.mark.full
def test_diffusers_gives_the_same_output_with_the_file(sd1, tmp_path):
    pytest.importorskip("peft")
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from ddpm_jax.models.condition import Condition

    unet, params = sd1
    lora = drawn(unet, params)
    write_lora(tmp_path / FILE, lora, unet, scale=1.5)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(SD1, safety_checker=None)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 8, 8, 4)).astype(np.float32)
    context = rng.normal(size=(1, 77, 48)).astype(np.float32)

    def theirs():
        with torch.no_grad():
            inputs = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor([500])
            out = pipe.unet(*inputs, torch.tensor(context)).sample
        return out.numpy().transpose(0, 2, 3, 1)

    before = theirs()
    pipe.load_lora_weights(str(tmp_path))
    merged = add_lora(tmp_path, params, unet)
    condition = Condition(context=context)
    ours = jax.jit(unet.apply)({"params": merged[UNET]}, x, np.float32([500]), condition)
    wanted = theirs()
    assert np.abs(wanted - before).max() > 0.01
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.full
def test_transformers_gives_the_same_features_with_the_file(sd1, tmp_path):
    pytest.importorskip("peft")
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    weights = load_file(SD1 / "text_encoder/model.safetensors")
    tensors = {}
    for name, (a, b) in pairs({m: weights[f"{m}.weight"].shape for m in OF_TEXT}).items():
        tensors |= dict(zip(NAMES_OF_TEXT["peft"](name), (a, 0.1 * b), strict=False))
    save_file(tensors, tmp_path / FILE)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(SD1, safety_checker=None)
    tokens = pipe.tokenizer("a dog wearing hat", padding="max_length", return_tensors="pt")

    def theirs():
        with torch.no_grad():
            return pipe.text_encoder(tokens.input_ids)[0].numpy()

    before = theirs()
    pipe.load_lora_weights(str(tmp_path))
    wanted = theirs()
    assert np.abs(wanted - before).max() > 0.1
    model = ddpm_jax.load(SD1, lora=tmp_path / FILE)
    found = read_texts(model.trained, Conditions(prompt=("a dog wearing hat",)))
    np.testing.assert_allclose(found.context, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"unet.{Q}.lora_A.weight": (2, 32)}, "is not whole: it has no lora_B of down_blocks"),
        (
            {
                "text_encoder.text_model.x.lora_A.weight": (2, 4),
                "text_encoder.text_model.x.lora_B.weight": (4, 2),
            },
            "text encoder does not have: it belongs to another network",
        ),
        ({f"unet.{Q}.weight": (2, 32)}, "which is no part of a low-rank update"),
        (
            {f"unet.{Q}.lora_A.weight": (2, 320), f"unet.{Q}.lora_B.weight": (320, 2)},
            "it belongs to another network",
        ),
        (
            {f"unet.{Q}.lora_A.weight": (2, 32), f"unet.{Q}.lora_B.weight": (32, 3)},
            "are not those of a low-rank update",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(sd1, tmp_path, tensors, says):
    unet, params = sd1
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in tensors.items()}, tmp_path / FILE
    )
    with pytest.raises(UsageError, match=says):
        add_lora(tmp_path / FILE, params, unet)


def test_another_kind_of_file_is_refused_in_a_sentence(sd1, tmp_path):
    unet, params = sd1
    (tmp_path / "lora.safetensors").write_bytes(b"none")
    with pytest.raises(UsageError, match="neither a whole safetensors file"):
        add_lora(tmp_path / "lora.safetensors", params, unet)
