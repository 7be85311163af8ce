"""Config files: each one loads, builds, and is a record of its experiment; users' own are completed by the defaults."""

import ast
import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.cli import config as configs
from ddpm_jax.cli.experiment import build, build_training
from ddpm_jax.errors import UsageError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
DATASETS = ("ddpm_cifar10", "ddpm_lsun_church", "ddpm_lsun_bedroom", "ddpm_lsun_cat", "ddpm_celebahq256")


def load(name):
    return configs.load_config(CONFIGS / f"{name}.py")


def test_the_papers_datasets_and_the_digits_have_configs():
    assert {"digits", *DATASETS} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_builds(path):
    experiment = build(configs.load_config(path))
    build_training(experiment)
    height, width, channels = experiment.image_shape
    x, t = jax.ShapeDtypeStruct((2, height, width, channels), "float32"), jax.ShapeDtypeStruct((2,), "float32")
    output = jax.eval_shape(
        lambda params, x, t: experiment.model.apply({"params": params}, x, t), experiment.params_shapes(), x, t
    )
    assert output.shape == (2, height, width, experiment.model.out_channels)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_a_record_of_its_experiment(path):
    record = ast.get_docstring(ast.parse(path.read_text()))
    assert all(heading in record for heading in ("Paper:", "Command:", "Hardware:", "Expected:"))
    assert path.stem == "digits" or f"--config configs/{path.name}" in record  # the command is this file's own


@pytest.mark.parametrize(("name", "count"), [("ddpm_cifar10", 35_746_307), ("ddpm_lsun_church", 113_673_219)])
def test_parameter_counts_are_those_of_the_original_graph(name, count):
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
    assert (o.warmup_steps, o.decay, o.clip_norm, o.clip_scope) == (5000, "constant", 1.0, "replica")
    assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
    assert (config.train.batch_size, config.train.num_steps) == (128, 800_000)
    assert (config.model.dropout, config.data.flip) == (0.1, True)
    assert configs.to_dict(config) == configs.to_dict(configs.default_config())  # the defaults are this experiment


@pytest.mark.parametrize("name", DATASETS[1:])
def test_256x256_configs_train_as_the_original_code_did(name):
    config = load(name)
    assert (config.optimizer.learning_rate, config.train.batch_size, config.model.dropout) == (2e-5, 64, 0.0)
    assert config.optimizer.warmup_steps == 5000
    assert config.data.flip == (name != "ddpm_lsun_bedroom")  # the paper: no flips for Bedroom


@pytest.mark.parametrize(
    "body",
    ["return {'model': {'ch': 64, 'ch_mult': [1, 2]}}", "return ConfigDict({'model': {'ch': 64, 'ch_mult': (1, 2)}})"],
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
    with pytest.raises(UsageError, match=r"mine\.py: config field 'model\.ch' is of type int and cannot be 'wide'"):
        configs.load_config(path)


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
            text = ",".join(map(str, value)) + "," if isinstance(value, tuple) else str(value)
            config = configs.override(config, [f"--config.{name}={text}"])
    assert configs.to_dict(config) == configs.to_dict(configs.default_config())


def test_overrides_are_split_from_the_other_flags():
    argv = ["--workdir", "w", "--config.model.ch=64", "--config", "c.py", "--config.seed", "3"]
    assert configs.split_overrides(argv) == (
        ["--config.model.ch=64", "--config.seed=3"],
        ["--workdir", "w", "--config", "c.py"],
    )


def test_what_changes_neither_model_nor_draws_may_differ_on_resuming():
    ours, theirs = configs.default_config(), configs.default_config()
    ours.train.num_steps, ours.checkpoint.save_every = 7, 3
    assert configs.differences(configs.to_dict(ours), configs.to_dict(theirs)) == []
    ours.model.ch = 64
    assert configs.differences(configs.to_dict(ours), configs.to_dict(theirs)) == ["model.ch (128 there, 64 here)"]
    fields = {name for name, _ in configs.flatten(configs.default_config())}
    assert set(configs.RESUMABLE) <= fields
