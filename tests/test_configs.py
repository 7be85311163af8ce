"""Config files load, build and record their experiment; defaults complete those of users."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion.likelihood import prior_warning
from ddpm_jax.diffusion.schedules import spaced_timesteps
from ddpm_jax.distributed.pmap import map_step, replicate, shard
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.chains import make_chain
from ddpm_jax.experiments.codec import FrozenFirstStage
from ddpm_jax.experiments.trainer import build_training, init_state
from ddpm_jax.models.condition import null_condition
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.randomness import base_key

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
DATASETS = (
    "ddpm_cifar10",
    "ddpm_lsun_church",
    "ddpm_lsun_bedroom",
    "ddpm_lsun_cat",
    "ddpm_celebahq256",
)

ABLATION = {  # table 2 of Ho et al. 2020: parameterisation, loss, variance
    "ddpm_cifar10_mu_vlb_learned": ("mu", "vlb", "learned"),
    "ddpm_cifar10_mu_vlb": ("mu", "vlb", "fixed_large"),
    "ddpm_cifar10_mu_simple": ("mu", "simple", "fixed_large"),
    "ddpm_cifar10_eps_vlb_learned": ("eps", "vlb", "learned"),
    "ddpm_cifar10_eps_vlb": ("eps", "vlb", "fixed_large"),
    "ddpm_cifar10": ("eps", "simple", "fixed_large"),
}
IMPROVED = {  # table 2 of Nichol & Dhariwal 2021, cosine, T = 4000: loss, variance, draws of t
    "iddpm_cifar10_simple": ("simple", "fixed_large", "uniform"),
    "iddpm_cifar10_hybrid": ("hybrid", "learned_range", "uniform"),
    "iddpm_cifar10_vlb": ("vlb", "learned_range", "importance"),
}
# the unconditional config, and the conditions of the network: classes, hidden labels, factor
CONDITIONAL = {
    "digits_cond": ("digits", (10, 0.1, 0)),
    "digits_sr": ("digits", (0, 0.0, 2)),
    "ddpm_cifar10_cond": ("ddpm_cifar10", (10, 0.1, 0)),
}
BUILT = (
    "digits",
    "digits_cond",
    "ddpm_cifar10",
    "dit_digits",
    "edm_digits",
    "edm2_digits",
)  # the rest with --slow


CLASSIFIERS = {"digits_classifier"}
FIRST_STAGES = {  # image size, kind, latent [h, w, c]
    "ae_digits": (8, "ae", (4, 4, 1)),
    "vae_digits": (8, "vae", (4, 4, 4)),
    "vae2d_digits": (8, "vae", (1, 1, 2)),
    "vqvae_digits": (8, "vq", (4, 4, 4)),
    "emoji_vae": (32, "vae", (8, 8, 8)),
    "vae_cifar10": (32, "vae", (8, 8, 4)),
    "vqvae_cifar10": (32, "vq", (8, 8, 64)),
    "vqgan_cifar10": (32, "vq", (8, 8, 64)),
    "vae_imagenet256": (256, "vae", (32, 32, 4)),
}
OVER_LATENTS = {  # config of the first stage, shape of its latents
    "ldm_digits": ("vae_digits", (4, 4, 4)),
    "emoji_text": ("emoji_vae", (8, 8, 8)),
    "ldm_dit_imagenet256": ("vae_imagenet256", (32, 32, 4)),
    "sit_imagenet256": ("vae_imagenet256", (32, 32, 4)),
}
CONTINUOUS = {  # the chain's config, and the process and prediction in continuous time
    "edm_digits": ("digits", "edm", "edm"),
    "fm_digits": ("digits", "flow", "velocity"),
    "meanflow_digits": ("digits", "flow", "velocity"),
    "vdm_digits": ("digits", "vdm", "eps"),
    "edm_unet_cifar10": ("ddpm_cifar10", "edm", "edm"),
    "fm_cifar10": ("ddpm_cifar10", "flow", "velocity"),
    "sit_imagenet256": ("ldm_dit_imagenet256", "flow", "velocity"),
}
TRANSFORMERS = ("dit_digits",)
OWN_NETWORKS = ("edm_cifar10", "vdm_cifar10", "edm2_digits")  # of a process in continuous time
TEXTS = ("digits_text",)
FINE_TUNED = {"sd15_finetune"}  # nothing by themselves


def load(name):
    return configs.load_config(CONFIGS / f"{name}.py")


def test_the_papers_datasets_and_ablations_and_the_digits_have_configs():
    unconditional = {"digits", *DATASETS, *ABLATION, *IMPROVED}
    others = {
        *CONDITIONAL,
        *CLASSIFIERS,
        *FIRST_STAGES,
        *OVER_LATENTS,
        *TRANSFORMERS,
        *TEXTS,
        *FINE_TUNED,
        *CONTINUOUS,
        *OWN_NETWORKS,
    }
    assert unconditional | others == {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_chain_ends_in_noise(path):
    assert prior_warning(make_chain(load(path.stem)).at()) is None


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_process_in_continuous_time_shares_network_and_data_with_a_chain(name):
    base, process, prediction = CONTINUOUS[name]
    ours, theirs = load(name), load(base)
    assert (ours.diffusion.process, ours.diffusion.parameterization) == (process, prediction)
    for group in ("data", "model", "dit", "condition"):
        of_ours, of_theirs = ours[group].to_dict(), theirs[group].to_dict()
        differing = {field for field in of_ours if of_ours[field] != of_theirs[field]}
        assert differing <= ({"fourier_features"} if process == "vdm" else set())


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in BUILT else pytest.mark.slow)
        for path in FILES
        if path.stem not in CLASSIFIERS | FIRST_STAGES.keys() | OVER_LATENTS.keys() | FINE_TUNED
    ],
    ids=lambda path: path.stem,
)
def test_config_builds(path):
    check_builds(build(configs.load_config(path)))


@pytest.mark.full
@pytest.mark.parametrize("name", OVER_LATENTS)
def test_a_config_over_latents_builds_on_its_first_stage(name):
    first, shape = OVER_LATENTS[name]
    model = build(load(name), FrozenFirstStage(build(load(first)), sha256=""))
    assert model.shape == shape
    check_builds(model)


@pytest.mark.full
def test_the_config_for_stable_diffusion_1_has_its_networks_and_low_rank_updates_of_them():
    config = load("sd15_finetune")
    first_stage = FrozenFirstStage(build(load("vae_imagenet256")), sha256="")
    model = build(config, first_stage)
    assert model.shape == (64, 64, 4)
    assert model.network == TextUNet(dtype=jnp.bfloat16, remat="blocks")
    assert model.encoder == TextEncoder(dtype=jnp.bfloat16)
    assert count(model.params_shapes()) == 859_520_964
    assert count(model.frozen_shapes().text) == 123_060_480
    build_training(model)
    config.init_from, config.lora.rank = "any", 4
    # 797,184 is what diffusers' script trains at rank 4, of which the file has 3.2 MB
    assert count(build(config, first_stage).params_shapes()) == 797_184


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def check_builds(model):
    build_training(model)
    height, width, channels = model.shape
    x, t = (
        jax.ShapeDtypeStruct((2, height, width, channels), "float32"),
        jax.ShapeDtypeStruct((2,), "float32"),
    )
    output = jax.eval_shape(
        lambda params, x, t: model.network.apply(
            {"params": params}, x, t, null_condition(model.network, x)
        ),
        model.params_shapes(),
        x,
        t,
    )
    assert output.shape == (2, height, width, model.network.out_channels)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stages_config_builds(name):
    size, kind, latent = FIRST_STAGES[name]
    model = build(load(name))
    build_training(model)
    x = jax.ShapeDtypeStruct((2, size, size, model.image_shape[-1]), "float32")
    stage, params = model.stage, model.params_shapes()
    assert stage.kind == kind
    assert jax.eval_shape(stage.latent, params, x).z.shape == (2, *latent)
    assert ("codebook" in params) == (kind == "vq")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_a_record_of_its_experiment(path):
    record = ast.get_docstring(ast.parse(path.read_text()))
    assert all(heading in record for heading in ("Paper:", "Command:", "Hardware:", "Expected:"))
    # the command is this file's own
    assert path.stem == "digits" or f"--config configs/{path.name}" in record


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ddpm_cifar10", 35_746_307),
        ("ddpm_lsun_church", 113_673_219),
        ("edm_cifar10", 55_733_891),  # 55.7 M as published
        ("iddpm_cifar10_hybrid", 52_546_438),  # of diffusers' network with these settings
    ],
)
def test_parameter_counts_are_those_of_the_original_networks(name, count):
    shapes = build(load(name)).params_shapes()
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count


def test_all_256x256_configs_share_the_papers_network():
    networks = [load(name).model.to_dict() for name in DATASETS[1:]]
    assert all(network == networks[0] for network in networks)
    assert networks[0]["ch_mult"] == (1, 1, 2, 2, 4, 4)


def test_cifar10_trains_as_the_original_code_did():
    """Optimisation of the original scripts/run_cifar.py and tpu_utils."""
    config = load("ddpm_cifar10")
    o = config.optimizer
    assert (o.name, o.learning_rate, o.b1, o.b2, o.eps) == ("adam", 2e-4, 0.9, 0.999, 1e-8)
    assert (o.warmup_steps, o.decay, o.clip_norm, o.clip_scope) == (
        5000,
        "constant",
        1.0,
        "replica",
    )
    assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
    assert (config.train.batch_size, config.train.num_steps) == (128, 800_000)
    assert (config.model.dropout, config.data.flip) == (0.1, True)
    # the defaults are this experiment
    assert configs.to_dict(config) == configs.to_dict(configs.default_config())


@pytest.mark.parametrize("name", DATASETS[1:])
def test_256x256_configs_train_as_the_original_code_did(name):
    config = load(name)
    assert (config.optimizer.learning_rate, config.train.batch_size, config.model.dropout) == (
        2e-5,
        64,
        0.0,
    )
    assert config.optimizer.warmup_steps == 5000
    assert config.data.flip == (name != "ddpm_lsun_bedroom")  # the paper: no flips for Bedroom


@pytest.mark.parametrize("name", ABLATION)
def test_the_ablation_of_ddpm_changes_what_its_table_names_and_nothing_else(name):
    config = load(name)
    diffusion = config.diffusion
    assert (diffusion.parameterization, diffusion.loss, diffusion.variance) == ABLATION[name]
    varied = {"diffusion.parameterization", "diffusion.loss", "diffusion.variance"}
    if diffusion.loss == "vlb":
        varied |= {"optimizer.clip_norm", "optimizer.eps"}
    base = dict(configs.flatten(load("ddpm_cifar10")))
    assert {field for field, value in configs.flatten(config) if value != base[field]} <= varied


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_conditional_config_is_the_unconditional_one_that_is_told_more(name):
    base, conditions = CONDITIONAL[name]
    config, unconditional = load(name), dict(configs.flatten(load(base)))
    c = config.condition
    assert (c.num_classes, c.label_dropout, c.low_res_factor) == conditions
    differing = {field for field, value in configs.flatten(config) if value != unconditional[field]}
    assert {field for field in differing if not field.startswith("condition.")} <= {
        "train.num_samples"
    }


@pytest.mark.parametrize(
    "first", [[3.0, -4.0, 0.5], [1e-8, -3e-9, 2e-8]], ids=["clipped", "eps decides"]
)
def test_a_bound_t_times_as_large_is_trained_by_the_same_updates(first):
    """The original's L is the mean of L_t over t, ours the sum: clipping and Adam's eps times T."""
    ours, original = load("ddpm_cifar10_eps_vlb").optimizer, load("ddpm_cifar10").optimizer

    def updates(o, scale):
        optimizer = optax.chain(optax.clip_by_global_norm(o.clip_norm), optax.adam(1.0, eps=o.eps))
        state, result = optimizer.init(np.zeros(3, np.float32)), []
        for shrink in (1.0, 0.05):
            update, state = optimizer.update(np.float32(scale * shrink) * np.float32(first), state)
            result.append(update)
        return np.stack(result)

    np.testing.assert_allclose(updates(ours, 1000), updates(original, 1), rtol=1e-5)  # float32
    assert np.abs(updates(original, 1000) / updates(original, 1) - 1).max() > 0.1


@pytest.mark.parametrize("name", IMPROVED)
def test_improved_ddpm_trains_as_its_authors_did(name):
    """Their published flags for CIFAR-10 and their code's defaults."""
    config = load(name)
    d, m, o = config.diffusion, config.model, config.optimizer
    assert (d.loss, d.variance, d.timestep_sampling) == IMPROVED[name]
    assert (d.schedule, d.num_timesteps, d.parameterization) == ("cosine", 4000, "eps")
    assert (m.ch, m.ch_mult, m.num_res_blocks, m.attn_resolutions) == (
        128,
        (1, 2, 2, 2),
        3,
        (16, 8),
    )
    assert (m.num_heads, m.dropout, m.scale_shift_norm) == (4, 0.3, True)
    assert (m.time_embedding, m.norm_eps, m.downsample_padding) == ("cos_sin", 1e-5, "both")
    assert (o.name, o.learning_rate, o.weight_decay, o.eps) == ("adamw", 1e-4, 0.0, 1e-8)
    assert (o.warmup_steps, o.decay, o.clip_norm) == (0, "constant", 0.0)
    assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
    assert (config.train.batch_size, config.train.num_steps, config.data.flip) == (
        128,
        500_000,
        False,
    )


def test_dit_on_imagenet_trains_as_its_authors_did():
    """Section 4 of the paper, its appendix and the published code's defaults."""
    config = load("ldm_dit_imagenet256")
    model = build(config, FrozenFirstStage(build(load("vae_imagenet256")), sha256=""))
    assert model.network.out_channels == 8
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params_shapes()))
    assert round(count / 1e6) == 675
    np.testing.assert_allclose(model.chain.betas[[0, -1]], [1e-4, 0.02])
    d, o = config.diffusion, config.optimizer
    assert (d.num_timesteps, d.loss, d.variance, d.parameterization) == (
        1000,
        "hybrid",
        "learned_range",
        "eps",
    )
    assert (d.rescale_timesteps, d.timestep_sampling) == (False, "uniform")
    assert (o.name, o.learning_rate, o.weight_decay, o.b1, o.b2) == ("adamw", 1e-4, 0.0, 0.9, 0.999)
    assert (o.warmup_steps, o.decay, o.clip_norm) == (0, "constant", 0.0)
    assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
    assert (config.train.batch_size, config.train.num_steps, config.data.flip) == (
        256,
        7_000_000,
        True,
    )
    assert (config.condition.num_classes, config.condition.label_dropout) == (1000, 0.1)
    assert (config.model.dropout, config.model.time_embedding) == (0.0, "cos_sin")
    assert config.first_stage.latent_scale == 0.18215


def test_rescaled_timesteps_are_in_0_to_1000_whatever_t_and_however_few_steps_are_walked():
    model = build(load("iddpm_cifar10_hybrid"))
    np.testing.assert_array_equal(model.schedule.timesteps, np.arange(4000) / 4)
    np.testing.assert_array_equal(
        model.chain.at(spaced_timesteps(4000, 50)).timesteps, spaced_timesteps(4000, 50) / 4
    )
    np.testing.assert_array_equal(build(load("ddpm_cifar10")).schedule.timesteps, np.arange(1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ABLATION | IMPROVED | CONDITIONAL if name != "ddpm_cifar10"]
)
def test_a_shrunken_version_trains_through_the_real_step(name):
    """A dozen steps with finite losses and parameters; both ends of the network move."""
    config = load(name)
    config.data.image_size = 8
    config.diffusion.num_timesteps = 8  # few, so that importance sampling has its history soon
    config.model.update(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    config.optimizer.warmup_steps = 0
    config.train.update(batch_size=16, sample_steps=8)
    model = build(config)
    training = build_training(model)
    initial = init_state(model, training)
    state, step = replicate(jax.tree.map(np.asarray, initial)), map_step(training.train_step)
    images = np.random.default_rng(0).integers(0, 256, (16, *model.image_shape), np.uint8)
    batch = {"image": images, "label": np.arange(16, dtype=np.int32) % 10}
    for _ in range(12):
        state, metrics = step(state, shard(batch), base_key(0))
        assert np.isfinite(metrics["loss"])
    for params in (state.params, state.ema_params):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        for layer in ("conv_in", "conv_out"):
            assert np.any(params[layer]["kernel"] != initial.params[layer]["kernel"])


@pytest.mark.full
def test_updates_of_edm2s_network_keep_the_magnitude_of_its_weights_and_of_no_others():
    config = load("edm2_digits")
    config.optimizer.warmup_steps = 0
    config.train.batch_size = 8
    model = build(config)
    training = build_training(model)
    initial = init_state(model, training)
    state, step = replicate(jax.tree.map(np.asarray, initial)), map_step(training.train_step)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)}
    for _ in range(3):
        state, _ = step(state, shard(batch), base_key(0))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, leaf), first in zip(leaves, jax.tree.leaves(initial.params), strict=True):
        if path[0].key == "time_features":
            np.testing.assert_array_equal(leaf, first)
            continue
        assert np.any(leaf != first), path
        square = np.mean(np.square(np.float64(leaf)), axis=tuple(range(np.ndim(leaf) - 1)))
        if path[-1].key == "unit_kernel":
            np.testing.assert_allclose(square, 1, rtol=1e-6)
        else:  # gains, and the learned weighting
            assert np.all(square < 0.1), path


@pytest.mark.parametrize(
    "body",
    [
        "return {'model': {'ch': 64, 'ch_mult': [1, 2]}}",
        "return ConfigDict({'model': {'ch': 64, 'ch_mult': (1, 2)}})",
    ],
)
def test_a_users_own_file_is_completed_by_the_defaults(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    {body}\n")
    config, expected = configs.load_config(path), configs.default_config()
    expected.model.ch, expected.model.ch_mult = 64, (1, 2)
    assert configs.to_dict(config) == configs.to_dict(expected)


def test_a_value_of_the_wrong_type_in_a_users_file_names_the_file_and_the_field(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {'model': {'ch': 'wide'}}\n")
    with pytest.raises(
        UsageError, match=r"mine\.py: config field 'model\.ch' is of type int and cannot be 'wide'"
    ):
        configs.load_config(path)


def test_a_config_is_found_by_name_path_or_value(tmp_path):
    digits = configs.to_dict(load("digits"))
    path = tmp_path / "mine.py"
    path.write_text((CONFIGS / "digits.py").read_text())
    given = configs.from_dict(digits, source="here")
    for config in ("digits", path, str(path), digits, given):
        assert configs.to_dict(configs.find_config(config)) == digits
    found = configs.find_config(given)
    found.model.ch = 32 + given.model.ch
    assert configs.to_dict(given) == digits, "what is given is not changed"
    few = configs.find_config({"model": {"ch": 64}})
    assert (few.model.ch, few.train.batch_size) == (64, 128)
    for bad in (None, 3, [("model", 1)]):
        with pytest.raises(UsageError, match=r"The config is .*: give a name, a path, a dict"):
            configs.find_config(bad)
    with pytest.raises(UsageError, match=r"'model.chan'. Did you mean 'model.ch'"):
        configs.find_config({"model": {"chan": 1}})


def test_an_override_leaves_the_config_it_is_of_alone():
    config = configs.default_config()
    assert configs.override(config, {"model.ch": "64"}).model.ch == 64
    assert config.model.ch == 128


def test_a_config_survives_json():
    config = load("ddpm_lsun_church")
    again = configs.from_dict(configs.to_dict(config), source="a checkpoint")
    assert again.model.ch_mult == (1, 1, 2, 2, 4, 4)  # a tuple again, not a list
    assert configs.to_dict(again) == configs.to_dict(config)
    assert configs.differences(configs.to_dict(again), configs.to_dict(config)) == []


def test_every_field_can_be_overridden_with_its_own_value():
    config = configs.default_config()
    for name, value in configs.flatten(config):
        if value is not None:
            text = (
                "".join(f"{item}," for item in value) or "()"
                if isinstance(value, tuple)
                else str(value)
            )
            config = configs.override(config, {name: text})
    assert configs.to_dict(config) == configs.to_dict(configs.default_config())


def test_overrides_are_split_from_the_other_flags():
    argv = ["--workdir", "w", "--config.model.ch=64", "--config", "c.py", "--config.seed", "3"]
    assert configs.split_overrides(argv) == (
        {"model.ch": "64", "seed": "3"},
        ["--workdir", "w", "--config", "c.py"],
    )


def test_what_changes_neither_model_nor_draws_may_differ_on_resuming():
    ours, theirs = configs.default_config(), configs.default_config()
    ours.train.num_steps, ours.checkpoint.save_every = 7, 3
    assert configs.differences(configs.to_dict(ours), configs.to_dict(theirs)) == []
    ours.model.ch = 64
    assert configs.differences(configs.to_dict(ours), configs.to_dict(theirs)) == [
        "model.ch (128 there, 64 here)"
    ]
    fields = {name for name, _ in configs.flatten(configs.default_config())}
    assert set(configs.RESUMABLE) <= fields


def test_a_run_older_than_a_field_has_its_default():
    ours, theirs = (
        configs.to_dict(configs.default_config()),
        configs.to_dict(configs.default_config()),
    )
    del theirs["model"]["time_embedding"]
    assert configs.differences(ours, theirs) == []
    ours["model"]["time_embedding"] = "cos_sin"
    assert configs.differences(ours, theirs) == [
        "model.time_embedding ('sin_cos' there, 'cos_sin' here)"
    ]
