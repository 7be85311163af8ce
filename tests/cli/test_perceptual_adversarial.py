"""Perceptual and adversarial terms by the same commands: trained, resumed, read back without the
discriminator, and refused."""

import contextlib
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli import command
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments import perceptual
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.experiments.trainer import build_training, init_state, state_shapes
from ddpm_jax.interop import lpips_weights
from ddpm_jax.models.lpips import Lpips

from .conftest import find_main, write_config

# The config of the tests sets what a first stage does not have.
STAGE = [
    "--config.objective=first_stage",
    "--config.diffusion.num_timesteps=1000",
    "--config.train.sample_steps=1000",
    "--config.optimizer.clip_scope=average",
]
ADVERSARY = [
    "--config.sharp.adversarial_weight=0.5",
    "--config.sharp.start_step=2",
    "--config.sharp.discriminator_ch=16",
    "--config.sharp.discriminator_layers=1",
]
TINY = Lpips(channels=((4,), (4,), (4,), (4,), (4,)))  # in place of VGG16


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Arguments for a folder of images of 16x16, on which the distance can be measured."""
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 16, 16), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    fields = {"name": "folder", "data_dir": folder, "image_size": 16, "holdout": 0.25}
    return [f"--config.data.{name}={value}" for name, value in fields.items()]


def random_weights(path):
    """A file of the distance's weights as a user makes it, drawn at random, for `TINY`."""
    rng, tensors, inputs = np.random.default_rng(0), {}, 3
    for k, (features,) in enumerate(TINY.channels):
        tensors[f"net.slice{k + 1}.{3 * k}.weight"] = (
            rng.standard_normal((features, inputs, 3, 3), np.float32) / 3
        )
        tensors[f"net.slice{k + 1}.{3 * k}.bias"] = np.zeros(features, np.float32)
        tensors[f"lin{k}.model.1.weight"] = np.ones((1, features, 1, 1), np.float32)
        inputs = features
    np.savez(path, **tensors)
    return path


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, photos):
    """arguments(num_steps) for a run with both terms; the file of the distance's weights is in the
    first's folder."""
    directory = tmp_path_factory.mktemp("sharp")
    file = random_weights(directory / "weights.npz")
    both = [
        *ADVERSARY,
        "--config.sharp.perceptual_weight=1",
        f"--config.sharp.perceptual_file={file}",
    ]

    def arguments(num_steps):
        config = write_config(directory / "mine.py", data_dir="", num_steps=num_steps)
        return [
            "--config",
            str(config),
            "--workdir",
            str(directory / "run"),
            *STAGE,
            *photos,
            *both,
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "Lpips", lambda: TINY)
        yield arguments


@pytest.fixture(scope="module")
def saved(arguments, tmp_path_factory):
    """(model, training, its first state, the directory of a run that saved it), the file of
    weights gone since."""
    overrides, (_, path, *_) = configs.split_overrides(arguments(4))
    config = configs.override(configs.load_config(path), overrides)
    model = build(config)
    training = build_training(model)
    state = init_state(model, training)
    directory = tmp_path_factory.mktemp("saved")
    with contextlib.closing(Checkpointer(directory, keep_last=1)) as checkpointer:
        checkpointer.save(1, state, {"batches": 1}, configs.to_dict(config))
    return model, training, state, directory


@pytest.mark.full
@pytest.mark.parametrize("raw_weights", [False, True])
def test_the_first_stage_is_read_without_its_discriminator(saved, raw_weights):
    model, _, state, directory = saved
    loaded = load_first_stage(directory, raw_weights=raw_weights)
    expected = {name: leaves for name, leaves in state.params.items() if name != "discriminator"}
    assert state.params.keys() - expected.keys() == {"discriminator"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert expected.keys() == model.params_shapes().keys()


def test_a_run_is_resumed_without_the_file_of_weights(saved, monkeypatch):
    model, training, state, directory = saved
    monkeypatch.setattr(lpips_weights, "read_lpips", None)  # who reads it fails
    with contextlib.closing(Checkpointer(directory, keep_last=1)) as checkpointer:
        restored, _ = checkpointer.restore(state_shapes(model, training))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert len(jax.tree.leaves(restored.frozen)) == 3 * len(TINY.channels)


@pytest.mark.slow
def test_a_run_leaves_records_of_both_players_and_is_resumed(arguments):
    for steps in (3, 4):
        assert command.run(find_main("train"), arguments(steps)) == 0
    run = pathlib.Path(arguments(4)[3])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "loss" in record]
    terms = {
        "perceptual",
        "discriminator_loss",
        "generator_loss",
        "logit_real",
        "logit_fake",
        "adaptive_weight",
    }
    assert [record["step"] for record in records] == [2, 3, 4]
    assert all(record.keys() >= terms for record in records)
    assert all(record["adaptive_weight"] > 0 and record["perceptual"] > 0 for record in records)
    assert "discriminator" not in load_first_stage(run, raw_weights=True).params


@pytest.mark.full
def test_a_perceptual_run_without_its_file_is_told_how_to_get_one(
    refused, config_file, photos, tmp_path
):
    for more, says in (
        ([], "sharp.perceptual_file=FILE (docs/first_stages.md"),
        (
            [f"--config.sharp.perceptual_file={tmp_path / 'none.npz'}"],
            "none.npz (No such file or directory)",
        ),
    ):
        arguments = ["--config", config_file(2), "--workdir", tmp_path / "run", *STAGE, *photos]
        refused("train", *arguments, "--config.sharp.perceptual_weight=1", *more, says=[says])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["start_step=5"],
            "sharp.start_step is 5, but a first stage without sharp.adversarial_weight has none",
        ),
        (
            ["discriminator_ch=32"],
            "sharp.discriminator_ch is 32, but a first stage without sharp.adversarial_weight",
        ),
        (
            ["perceptual_file=x.npz"],
            "perceptual_file is 'x.npz', but a first stage without sharp.perceptual_weight",
        ),
        (["adversarial_weight=-1"], "sharp.adversarial_weight is -1.0: it must be at least 0"),
        (
            ["adversarial_weight=1", "start_step=4"],
            "sharp.start_step is 4, but the run ends after 4 steps",
        ),
        (
            ["adversarial_weight=1"],
            "3 layers needs images of at least 24x24 pixels, but these are 8x8",
        ),
        (
            ["adversarial_weight=1", "discriminator_layers=1", "discriminator_b1=1"],
            "discriminator_b1 is 1.0: it must be",
        ),
        (
            ["adversarial_weight=1", "discriminator_layers=1", "discriminator_ch=20"],
            "make ch a multiple of 16",
        ),
        (["perceptual_weight=1"], "at least 16x16 pixels, but these are 8x8"),
    ],
)
def test_a_config_that_cannot_be_is_refused(refused, config_file, tmp_path, changes, says):
    changes = [f"--config.sharp.{change}" for change in changes]
    refused(
        "train",
        "--config",
        config_file(4),
        "--workdir",
        tmp_path / "run",
        *STAGE,
        *changes,
        says=[says],
    )


def test_clipping_device_by_device_and_what_is_no_first_stage_are_refused(
    refused, config_file, tmp_path
):
    arguments = ["--config", config_file(4), "--workdir", tmp_path / "run"]
    replica = ["--config.optimizer.clip_scope=replica"]
    refused(
        "train",
        *arguments,
        *STAGE,
        *ADVERSARY,
        *replica,
        says=["clips the gradient of both players by one norm"],
    )
    refused(
        "train",
        *arguments,
        "--config.sharp.start_step=2",
        says=["start_step is 2, but a diffusion model has none"],
    )
