"""Runs that begin with Stable Diffusion's files: all weights, or low-rank updates; and files again.

The model is far smaller than a golden one, so that its training compiles within the time of a test.
"""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.loading import load_trained, load_updates
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.diffusers_writing import pipeline_from_params, write_pipeline
from ddpm_jax.interop.pipeline_params import Networks, PipelineParams
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.lora import merge_lora
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.randomness import base_key
from ddpm_jax.tasks.exporting import export_lora
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.text.tokenizer_files import write_tokenizer
from ddpm_jax.text.vocabulary import clip_merges
from ddpm_jax.training_runs import start

from ..conftest import GOLDENS

CAPTIONS = ("a dog", "the dog, wearing a hat", "no dog")


def drawn(network, *inputs):
    """Parameters none of which is zero."""
    shapes = jax.eval_shape(network.init, base_key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def tokenizer():
    """One that no config names: its merges are not the first of CLIP's."""
    of_letters = [pair for pair in clip_merges()[:200] if max(map(len, pair)) == 1]
    return Tokenizer(of_letters[5:])


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory, tokenizer):
    """A directory of diffusers with networks of one level."""
    text = TextEncoder(
        vocab_size=tokenizer.vocab_size, width=32, layers=1, heads=2, hidden=64, context_length=77
    )
    vae = Autoencoder(
        resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), dropout=0.0,
        image_channels=3, latent_channels=4, out_channels=3,
    )  # fmt: skip
    unet = TextUNet(
        resolution=8, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(8,), num_heads=2,
        context_size=32,
    )  # fmt: skip
    latent, tokens = np.zeros((1, 8, 8, 4), np.float32), np.zeros((1, 77), np.int32)
    condition = Condition(context=np.zeros((1, 77, 32), np.float32))
    params = PipelineParams(
        drawn(unet, latent, np.zeros(1), condition),
        drawn(vae, np.zeros((1, 16, 16, 3), np.float32)),
        drawn(text, tokens),
    )
    networks = Networks(unet, vae, text, 0.5)
    scheduler = dict(read_pipeline(GOLDENS / "sd/sd1").scheduler)
    pipeline = pipeline_from_params(networks, params, scheduler=scheduler, sample_size=8)
    path = tmp_path_factory.mktemp("sd") / "tiny"
    write_pipeline(path, pipeline, tokenizer=lambda folder: write_tokenizer(tokenizer, folder))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(6):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(CAPTIONS[i % 3])
    return folder


@pytest.fixture(scope="module")
def config(stable_diffusion, images):
    """The config that a user would write: the fields of the model, and how it is trained."""
    config = load_trained(stable_diffusion).model.config.copy_and_resolve_references()
    config.init_from, config.first_stage.ckpt, config.text.ckpt = (
        str(stable_diffusion),
        "init_from",
        "",
    )
    config.first_stage.latent_scale = 0.0
    config.data.data_dir, config.data.captions, config.data.holdout = str(images), "auto", 0.4
    config.model.dropout = 0.0
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.ema.decay = 0.5
    config.train.update(num_steps=2, batch_size=2, log_every=1, num_samples=2, sample_steps=2)
    config.checkpoint.save_every = 1
    return config


@pytest.fixture
def first_states(monkeypatch):
    """The states that runs were begun with."""
    seen, init = [], start.init_state

    def noted(model, *args):
        state = init(model, *args)
        seen.append((model, jax.tree.map(np.array, state)))
        return state

    monkeypatch.setattr(start, "init_state", noted)
    return seen


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    for name, value in fields.items():
        group, _, leaf = name.rpartition("__")
        (config[group] if group else config)[leaf] = value
    return config


def equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_begins_as_the_very_model_trains_and_resumes_bit_for_bit(
    config, stable_diffusion, tokenizer, tmp_path, first_states, rank
):
    config = changed(config, lora__rank=rank)
    whole = ddpm_jax.train(config, tmp_path / "whole")
    before = load_trained(stable_diffusion)
    model, state = first_states.pop()
    equal(model.weights(state.ema_params, state.frozen), before.weights)
    equal(model.weights(state.params, state.frozen), before.weights)

    trained = ddpm_jax.load(whole.workdir)
    assert trained.trained.tokenizer.merges == tokenizer.merges
    equal(trained.trained.weights[1:], before.weights[1:])
    moved = {
        path
        for path, value in flatten_dict(trained.params).items()
        if not np.array_equal(value, flatten_dict(before.params)[path])
    }
    if rank:
        assert {path[-2] for path in moved} == {"q", "k", "v", "proj_out"}
        assert all("attn1" in path or "attn2" in path for path in moved)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        assert count == sum(leaf.size for leaf in jax.tree.leaves(state.ema_params)) < 20_000
    else:
        assert len(moved) > len(flatten_dict(before.params)) - 4

    ddpm_jax.train(changed(config, train__num_steps=1), tmp_path / "parts")
    resumed = ddpm_jax.train(config, tmp_path / "parts")
    equal(jax.device_get(resumed.state), jax.device_get(whole.state))
    assert len(first_states) == 1
    begun = json.loads((tmp_path / "parts/config.json").read_text())["begun_from"]
    assert begun["sha256"] == before.sha256
    assert trained.sample(prompt="a dog", steps=2, sampler="ddim").shape == (1, 16, 16, 3)


@pytest.mark.slow
def test_updates_of_a_run_are_the_same_merged_in_a_file_and_in_a_directory_of_diffusers(
    config, stable_diffusion, tmp_path
):
    config = changed(config, lora__rank=2, lora__alpha=6.0, lora__targets="all")
    run = ddpm_jax.train(config, tmp_path / "run").workdir
    trained = ddpm_jax.load(run)
    model, updates = load_updates(run)
    assert model.scale == 3
    base = load_trained(stable_diffusion).params
    close = dict(rtol=0, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close),
        trained.params,
        merge_lora(base, updates, 3.0),
    )
    export_lora(run, tmp_path / "lora.safetensors")
    merged = ddpm_jax.load(stable_diffusion, lora=tmp_path / "lora.safetensors")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), merged.params, trained.params
    )
    half = ddpm_jax.load(stable_diffusion, lora=tmp_path / "lora.safetensors", lora_scale=0.5)
    path = ("down_0_attn_0", "proj_in", "kernel")
    wanted = (flatten_dict(base)[path] + flatten_dict(trained.params)[path]) / 2
    np.testing.assert_allclose(flatten_dict(half.params)[path], wanted, **close)

    trained.write_diffusers(tmp_path / "written")
    again = ddpm_jax.load(tmp_path / "written")
    equal(again.trained.weights, trained.trained.weights)
    with pytest.raises(UsageError, match="exists: name a new directory"):
        trained.write_diffusers(tmp_path / "written")
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "written")
    kernel = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    path = ("down_0_attn_0", "block_0", "attn1", "q", "kernel")
    np.testing.assert_array_equal(kernel.detach().numpy().T, flatten_dict(trained.params)[path])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model__ch": 64}, "another architecture.*model.ch is 32 there and 64 here"),
        ({"model__ch": 64, "model__norm_groups": 16}, "64 here, and 1 more field differs[.]$"),
        ({"text__layers": 2}, "another architecture: text.layers is 1 there and 2 here"),
        ({"text__ckpt": "elsewhere"}, "the encoder of texts is that of init_from"),
        ({"init_from": ""}, "first_stage.ckpt is 'init_from', and init_from names nothing"),
        ({"init_from": "nowhere"}, "^init_from is nowhere, and there is no such directory or file"),
        ({"init_from": "", "first_stage__ckpt": "PATH"}, "text.ckpt names none"),
        (
            {"init_from": "", "first_stage__ckpt": "PATH", "lora__rank": 2},
            "a run without init_from has none",
        ),
        (
            {"first_stage__ckpt": "", "model__attn_resolutions": (16,)},
            "this config is of one of pixels",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    config, stable_diffusion, tmp_path, fields, says
):
    path = str(stable_diffusion)
    fields = {name: path if value == "PATH" else value for name, value in fields.items()}
    with pytest.raises(UsageError, match=says):
        ddpm_jax.train(changed(config, **fields), tmp_path / "run")


@pytest.mark.slow
def test_encoder_and_first_stage_alone_come_from_files_for_a_network_from_scratch(
    config, stable_diffusion, tokenizer, tmp_path, first_states
):
    path = str(stable_diffusion)
    config = changed(
        config, init_from="", first_stage__ckpt=path, text__ckpt=path, train__num_steps=1
    )
    run = ddpm_jax.train(config, tmp_path / "run").workdir
    model, state = first_states.pop()
    before = load_trained(stable_diffusion).weights
    weights = model.weights(state.params, state.frozen)
    equal((weights.frozen.params, weights.text), (before.frozen.params, before.text))
    assert load_trained(run).tokenizer.merges == tokenizer.merges
