"""Our models of pixels in the directories of diffusers: read by diffusers, and by ourselves."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.foreign_models import foreign_config
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Request
from ddpm_jax.families.recognition import recognise
from ddpm_jax.models.condition import Condition
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.tasks.network_exporting import WRITERS, write_network
from ddpm_jax.tasks.unconditional_exporting import write_unconditional

SMALL = {
    "data.image_size": 8,
    "model.ch": 32,
    "model.ch_mult": (1, 2),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (4,),
}
LEARNED = {
    "diffusion.variance": "learned_range",
    "diffusion.loss": "hybrid",
    "diffusion.schedule": "cosine",
    "model.scale_shift_norm": True,
    "model.resampling": "block",
    "model.head_channels": 16,
    "model.time_embedding": "cos_sin",
    "model.downsample_padding": "both",
    "model.norm_eps": 1e-5,
}
BY_CLASS = {
    "condition.num_classes": 3,
    "condition.label_dropout": 0.1,
    "data.channels": 1,
    "diffusion.schedule": "quad",  # which diffusers has not: its betas are listed
    "diffusion.num_timesteps": 20,
    "diffusion.parameterization": "v",
    "train.sample_steps": 20,
}


def trained_with(**fields):
    """Return a model whose weights are none of them zero, of a config with these fields."""
    config = default_config()
    config.update_from_flattened_dict(SMALL | fields)
    model = build(config)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        is_scale = path[-1].key == "scale"
        return jnp.asarray(is_scale + 0.1 * rng.normal(size=leaf.shape), jnp.float32)

    weights = Weights(jax.tree_util.tree_map_with_path(draw, model.params_shapes()))
    return TrainedModel(model, weights, 7, "ema", "5" * 64, directory=pathlib.Path("mine"))


@pytest.mark.full
@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_what_is_written_is_read_again_as_the_same_model(pipeline, tmp_path):
    trained = trained_with()
    write_unconditional(trained, tmp_path / "out", pipeline=pipeline)
    found = recognise(tmp_path / "out", Request()).foreign
    params = found.read(found.weights["raw"], trained.model.network)
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, trained.params))
    ours, again = trained.model.config, foreign_config(found, Request())
    # the end points of a schedule are written out
    process = {"beta_start": 1e-4, "beta_end": 0.02}
    if pipeline == "DDIMPipeline":  # whose scheduler names no variance, and clips in its own way
        process |= {"variance": "fixed_small", "clip": "keep_eps"}
    assert again.model.to_dict() == ours.model.to_dict()
    assert again.diffusion.to_dict() == ours.diffusion.to_dict() | process


def test_a_network_with_options_and_one_by_class_are_read_again(tmp_path):
    learned = trained_with(**LEARNED)
    write_unconditional(learned, tmp_path / "learned")
    found = recognise(tmp_path / "learned", Request()).foreign
    for name, value in LEARNED.items():
        if name != "diffusion.loss":
            assert found.fields[name] == value, name
    by_class = trained_with(**BY_CLASS | {"diffusion.schedule": "linear"})
    write_unconditional(by_class, tmp_path / "by_class")
    request = Request(fields={"condition.null_class": True})  # the last of their four classes is
    found = recognise(tmp_path / "by_class", request).foreign
    assert found.fields["condition.num_classes"] == 3
    card = (tmp_path / "by_class/README.md").read_text()
    assert "class_labels=labels" in card
    assert "moving average of step 7" in card


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"diffusion.parameterization": "mu"}, "predicts mu"),
        ({"diffusion.variance": "learned", "diffusion.loss": "hybrid"}, r"diffusion\.variance"),
        ({"diffusion.clip": "dynamic"}, r"diffusion\.clip"),
        ({"diffusion.num_timesteps": 2000, "diffusion.rescale_timesteps": True}, "rescale_timest"),
        ({"model.ch_mult": (2, 2)}, "ch_mult"),
        ({"model.resampling": "pool"}, "resampling"),
        ({"condition.low_res_factor": 2}, r"condition\.low_res_factor"),
        ({"model.name": "dit", "model.attn_resolutions": (16,)}, "with a U-Net"),
    ],
)
def test_what_diffusers_lacks_is_refused_by_its_name_and_nothing_is_written(fields, name, tmp_path):
    config = default_config()
    values = {} if fields.get("model.name") == "dit" else SMALL
    config.update_from_flattened_dict(values | fields)
    model = build(config)
    trained = TrainedModel(model, Weights(model.params_shapes()), 0, "raw")
    with pytest.raises(UsageError, match=name):
        write_unconditional(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_ddim_has_no_learned_variance_and_no_other_pipeline_is_known(tmp_path):
    trained = trained_with(**LEARNED)
    with pytest.raises(UsageError, match=r"learned_range.*DDIMScheduler"):
        write_unconditional(trained, tmp_path / "out", pipeline="DDIMPipeline")
    with pytest.raises(UsageError, match=r"Unknown pipeline of diffusers.*Did you mean"):
        write_unconditional(trained, tmp_path / "out", pipeline="DDPMPipelines")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_unconditional(trained, tmp_path / "out")


@pytest.mark.full
@pytest.mark.parametrize("fields", [{}, LEARNED, {"diffusion.clip": "none"}])
def test_a_pipeline_of_diffusers_makes_the_images_that_we_make(fields, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    trained = trained_with(**fields)
    model = trained.model
    write_unconditional(trained, tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(0)
    theirs = pipeline(2, seeded, num_inference_steps=5, output_type="np").images
    assert theirs.std() > 0.05

    seeded = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, 8, 8, generator=seeded).numpy() for _ in range(5)]
    x_T, *noise = (x.transpose(0, 2, 3, 1) for x in drawn)
    sampler = make_sampler("ancestral", model.chain, steps=5, levels="diffusers")
    denoiser = model.denoiser(trained.weights, sampler.schedule)
    noise = np.stack([*noise, np.zeros_like(x_T)])
    ours = jax.jit(lambda x_T: sample(denoiser, sampler, x_T, step_noise=noise).x_0)(x_T)
    # their table of alphas_bar is float32, which the logarithm of a learned range magnifies
    limit = 5e-4 if model.process.variance.learned else 1e-4
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), theirs, rtol=0, atol=limit)


@pytest.mark.full
def test_listed_betas_and_the_code_of_a_card_work_in_diffusers(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    trained = trained_with(**BY_CLASS)
    write_unconditional(trained, tmp_path / "mine")
    config = json.loads((tmp_path / "mine/scheduler/scheduler_config.json").read_text())
    np.testing.assert_allclose(config["trained_betas"], trained.model.chain.betas)
    monkeypatch.chdir(tmp_path)
    code = re.search("```python\n(.*?)```", (tmp_path / "mine/README.md").read_text(), re.DOTALL)
    made = {}
    exec(code.group(1), made)
    assert made["x"].shape == (3, 1, 8, 8)
    x, label = np.random.default_rng(1).normal(size=(2, 8, 8, 1)), np.array([0, 3])
    with torch.no_grad():
        theirs = made["pipeline"].unet(
            torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32), 5, torch.tensor(label)
        )
    ours = trained.model.apply(
        trained.weights, np.float32(x), np.full(2, 5), Condition(label=jnp.asarray(label))
    )
    np.testing.assert_allclose(ours, theirs.sample.numpy().transpose(0, 2, 3, 1), atol=1e-5)


FEW = {"init_from": "other", "distill.evaluations": 2}
MEAN_FLOW = {
    "diffusion.process": "flow",
    "diffusion.parameterization": "velocity",
    "diffusion.levels": "lognormal",
    "mean_flow.evaluations": 1,
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (FEW, "is a model of 2 steps"),
        (FEW | {"distill.method": "progressive"}, "is a model of 2 steps"),
        (MEAN_FLOW, "is a model of one step"),
        ({"diffusion.process": "vdm"}, "has learned its noise levels"),
    ],
)
def test_only_our_own_format_says_how_a_model_of_few_steps_is_sampled(fields, says, tmp_path):
    trained = trained_with(**fields, **{"diffusion.clip": "none"})
    with pytest.raises(UsageError, match=says):
        write_unconditional(trained, tmp_path / "out")
    for form in WRITERS:
        file = tmp_path / f"{form}.safetensors"
        if form == "safetensors":
            write_network(trained, file, form)
            continue
        with pytest.raises(UsageError, match=says):
            write_network(trained, file, form)
    assert [path.name for path in tmp_path.iterdir()] == ["safetensors.safetensors"]
