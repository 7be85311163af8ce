"""`init_from`: a run that begins with the weights of another one, and what it takes no more after
that."""

import json
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import read_config
from ddpm_jax.diffusion.schedules import spaced_timesteps
from ddpm_jax.errors import FailureError
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.loading import load_first_stage, load_trained
from ddpm_jax.randomness import base_key, image_keys, initial_noise
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import sample
from ddpm_jax.training_runs import session, start


@pytest.fixture
def beginning_state(monkeypatch):
    """The states that training was begun with, and the experiments."""
    seen, init = [], start.init_state

    def noted(experiment, *args):
        state = init(experiment, *args)
        seen.append((experiment, jax.tree.map(np.array, state)))
        return state

    monkeypatch.setattr(start, "init_state", noted)
    return seen


def _equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def _images(model, params):
    schedule = model.chain.at(spaced_timesteps(model.chain.num_timesteps, 5))
    keys = image_keys(base_key(0), np.arange(3))
    denoiser = model.denoiser(Weights(params), schedule)
    return sample(denoiser, ancestral(schedule), initial_noise(keys, model.shape), keys).x_0


@pytest.fixture
def stopped(monkeypatch):
    """Training ends before its first step."""

    def stop(*args, **kwargs):
        raise FailureError("Stopped.")

    monkeypatch.setattr(session, "train", stop)


@pytest.mark.full
@pytest.mark.parametrize("raw", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_begins_as_the_very_function_of_another_with_its_own_batch_rate_and_averages(
    invoke, trained, config_file, tmp_path, beginning_state, raw
):
    overrides = [
        "--config.train.batch_size=4",
        "--config.optimizer.learning_rate=1e-3",
        "--config.ema.decays=0.9",
    ]
    overrides += [
        f"--config.init_from={trained}",
        "--config.init_from_step=8",
        f"--config.init_from_raw={raw}",
    ]
    argv = ["--config", config_file(num_steps=1), "--workdir", tmp_path / "run", *overrides]
    result = invoke("train", *argv)
    assert result.code == 0, result.err
    assert (
        f"starting the first of 1 steps from the {'raw' if raw else 'ema'} weights of {trained}, "
        "step 8;" in result.err
    )
    source = load_trained(trained, step=8, raw_weights=raw)
    ((experiment, state),) = beginning_state
    for params in (state.params, state.ema_params, state.averages["decay_0.9"]):
        _equal(params, source.params)
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state)), (
        "Adam begins with nothing"
    )
    np.testing.assert_array_equal(
        _images(experiment, state.ema_params), _images(source.model, source.params)
    )
    for settings in (
        json.loads((tmp_path / "run" / "config.json").read_text()),
        read_config(tmp_path / "run", 1),
    ):
        weights = "raw" if raw else "ema"
        assert settings["begun_from"] == {
            "source": str(trained), "step": 8, "weights": weights, "sha256": source.sha256,
        }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_has_begun_needs_the_other_no_more_and_keeps_what_it_was(
    invoke, copied, config_file, tmp_path, beginning_state
):
    flags = ["--workdir", tmp_path / "run", f"--config.init_from={copied}"]
    assert invoke("train", "--config", config_file(num_steps=1), *flags).code == 0
    before = json.loads((tmp_path / "run" / "config.json").read_text())["begun_from"]
    shutil.rmtree(copied)
    result = invoke("train", "--config", config_file(num_steps=2), *flags)
    assert result.code == 0, result.err
    assert "resuming at step 1 of 2" in result.err
    assert len(beginning_state) == 1
    (tmp_path / "run" / "config.json").unlink()  # the checkpoint knows it too
    assert invoke("train", "--config", config_file(num_steps=3), *flags).code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["begun_from"] == before
    assert read_config(tmp_path / "run", 3)["begun_from"] == before


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--config.init_from={}/none"], ["init_from: There is no directory", "none"]),
        (
            ["--config.init_from={}", "--config.init_from_step=9"],
            ["no checkpoint of step 9: choose one of 8, 10"],
        ),
        (
            ["--config.init_from={}", "--config.model.ch=64"],
            [
                "is of another architecture: conv_in/bias is (32,) there and (64,) in this model, "
                "and"
            ],
        ),
        (
            [
                "--config.init_from={}",
                "--config.objective=classifier",
                "--config.condition.num_classes=10",
            ],
            ["init_from: ", "holds a diffusion model and not a classifier"],
        ),
        (
            ["--config.init_from_step=8"],
            ["init_from_step is 8, but a run without init_from has none"],
        ),
        (
            ["--config.init_from_raw=true"],
            ["init_from_raw is True, but a run without init_from has none"],
        ),
        (
            ["--config.init_from={}", "--config.init_from_step=-1"],
            ["init_from_step is -1: it must be at least 0"],
        ),
    ],
)
def test_what_cannot_be_begun_from_is_one_sentence(
    refused, trained, config_file, tmp_path, overrides, says
):
    overrides = [text.format(trained) for text in overrides]
    refused(
        "train", "--config", config_file(), "--workdir", tmp_path / "run", *overrides, says=says
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_model_that_is_told_classes_takes_all_but_their_table_and_says_so(
    invoke, trained, config_file, tmp_path, beginning_state, stopped
):
    flags = [
        "--workdir",
        tmp_path / "run",
        f"--config.init_from={trained}",
        "--config.condition.num_classes=10",
    ]
    result = invoke("train", "--config", config_file(num_steps=1), *flags)
    assert result.err.endswith("error: Stopped.\n")
    assert (
        "warning: init_from: class_embedding/embedding is initialized, because the classes differ."
        in result.err
    )
    ((_, state),) = beginning_state
    params = dict(state.params)
    assert np.std(params.pop("class_embedding")["embedding"]) > 0
    _equal(params, load_trained(trained).params)


@pytest.mark.full
def test_groups_of_parameters_have_learning_rates_of_their_own(
    invoke, refused, trained, config_file, tmp_path, beginning_state
):
    argv = ["--config", config_file(num_steps=2), "--workdir", tmp_path / "run"]
    argv += [f"--config.init_from={trained}", "--config.optimizer.warmup_steps=0"]
    wrong = "--config.optimizer.groups=conv_inn=0"
    refused("train", *argv, wrong, says=["has 'conv_inn', which is the path of no parameter"])
    result = invoke("train", *argv, "--config.optimizer.groups=conv_in=0")
    assert result.code == 0, result.err
    ((_, state),) = beginning_state
    after = load_trained(tmp_path / "run", raw_weights=True).params
    _equal(after["conv_in"], state.params["conv_in"])
    moved = np.abs(after["conv_out"]["kernel"] - state.params["conv_out"]["kernel"])
    assert moved.max() > 1e-4


@pytest.mark.full
def test_weights_that_mean_something_else_here_are_said_so(
    invoke, trained, config_file, tmp_path, stopped
):
    flags = [
        "--workdir",
        tmp_path / "run",
        f"--config.init_from={trained}",
        "--config.diffusion.parameterization=v",
    ]
    result = invoke("train", "--config", config_file(num_steps=1), *flags)
    assert result.err.endswith("error: Stopped.\n")
    assert (
        "mean something else here, because diffusion.parameterization is 'eps' there and 'v' here."
        in result.err
    )


@pytest.mark.slow
def test_a_first_stage_and_a_model_over_its_latents_begin_from_their_kind(
    invoke, refused, tmp_path, data_dir, beginning_state
):
    def run(name, config, *overrides):
        tiny = [
            f"--config.data.data_dir={data_dir}",
            "--config.train.num_steps=2",
            "--config.checkpoint.save_every=2",
        ]
        tiny += [
            "--config.train.sample_every=0",
            "--config.train.num_samples=4",
            "--config.model.ch=32",
        ]
        tiny += ["--config.optimizer.warmup_steps=0"]
        argv = ["--config", f"configs/{config}.py", "--workdir", tmp_path / name, *tiny, *overrides]
        result = invoke("train", *argv)
        assert result.code == 0, result.err
        return argv

    run("vae", "vae_digits")
    run("vae2", "vae_digits", f"--config.init_from={tmp_path / 'vae'}")
    _equal(beginning_state[-1][1].params, load_first_stage(tmp_path / "vae").params)
    over = ["--config.train.sample_steps=5", f"--config.first_stage.ckpt={tmp_path / 'vae'}"]
    run("ldm", "ldm_digits", *over)
    # Other data has latents of another spread: the scale is that of the weights' own run.
    run("ldm2", "ldm_digits", *over, f"--config.init_from={tmp_path / 'ldm'}", "--config.seed=5")
    source = load_trained(tmp_path / "ldm").weights
    _equal(beginning_state[-1][1].params, source.params)
    _equal(beginning_state[-1][1].frozen, source.frozen)
    other = [
        "--config.first_stage.ckpt=" + str(tmp_path / "vae2"),
        f"--config.init_from={tmp_path / 'ldm'}",
    ]
    says = [
        "holds a model of latents of the first stage",
        "give first_stage.ckpt as that run has it",
    ]
    argv = [
        "--config",
        "configs/ldm_digits.py",
        "--workdir",
        tmp_path / "no",
        f"--config.data.data_dir={data_dir}",
    ]
    refused("train", *argv, "--config.model.ch=32", *other, says=says)
