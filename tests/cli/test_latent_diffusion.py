"""Latent diffusion by the same commands: trained on a first stage, resumed without it, sampled,
edited, refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_jax.cli import command
from ddpm_jax.evaluation.pixel_frechet import pixel_frechet_distance
from ddpm_jax.experiments.identity import is_of_one_kind
from ddpm_jax.experiments.loading import load_first_stage, load_trained
from ddpm_jax.models.condition import Condition
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

from .conftest import find_main, train_on_devices, write_config

pytestmark = pytest.mark.full

# The config of the tests sets what a first stage does not have.
STAGE = [
    "--config.objective=first_stage",
    "--config.diffusion.num_timesteps=1000",
    "--config.train.sample_steps=1000",
    "--config.model.ch_mult=1,1",
]
CLASSES = ["--config.condition.num_classes=10", "--config.condition.label_dropout=0.25"]
OVER = ["--config.first_stage.ckpt=nowhere"]
FAST = ["--sampler", "ddim", "--steps", "3", "--num_samples", "4"]


def train(directory, data_dir, num_steps, *overrides):
    config = write_config(directory / "mine.py", data_dir=data_dir, num_steps=num_steps)
    argv = ["--config", str(config), "--workdir", str(directory / "run"), *map(str, overrides)]
    assert command.run(find_main("train"), argv) == 0
    return directory / "run"


@pytest.fixture(scope="module")
def stage(tmp_path_factory, data_dir):
    """A VAE of four steps: 8x8 digits to 4x4x4 latents."""
    return train(tmp_path_factory.mktemp("stage"), data_dir, 4, *STAGE)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, stage):
    """A model over its latents, of four steps; the directory of the VAE it was given is gone."""
    directory = tmp_path_factory.mktemp("latents")
    shutil.copytree(stage, directory / "stage")
    made = train(
        directory,
        data_dir,
        4,
        f"--config.first_stage.ckpt={directory / 'stage'}",
        "--config.train.sample_every=4",
        *CLASSES,
    )
    shutil.rmtree(directory / "stage")
    return made


@pytest.fixture
def photo(tmp_path):
    """A picture of the model's size, and a mask that is white in its first three rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    mask = np.where(np.arange(8)[:, None] < 3, 255, 0).astype(np.uint8).repeat(8, axis=1)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels


def images_in(out):
    with np.load(next(out.glob("samples-*.npz"))) as shard:
        return shard["images"]


def read_losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_the_first_stage_travels_with_the_model(invoke, run, stage, tmp_path):
    result = invoke(
        "sample",
        "--ckpt",
        run,
        *FAST,
        "--out",
        tmp_path / "out",
        "--chain",
        "--guidance_scale",
        "2",
    )
    assert result.code == 0, result.err
    assert images_in(tmp_path / "out").shape == (4, 8, 8, 1)
    assert (tmp_path / "out" / "chain.gif").exists()
    assert (run / "samples" / "step_00000004.png").exists()
    frozen, original = load_first_stage(run), load_first_stage(stage)
    jax.tree.map(np.testing.assert_array_equal, frozen.params, original.params)
    assert frozen.model.config == original.model.config


@pytest.mark.slow
def test_images_are_the_decoded_latents_that_the_chain_ends_with(invoke, run, tmp_path):
    """By hand: the latents of the same chain, nothing clipped, decoded by the first stage's own
    functions."""
    result = invoke("sample", "--ckpt", run, *FAST, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    loaded = load_trained(run)
    model, frozen = loaded.model, loaded.weights.frozen
    sampler = make_sampler("ddim", model.chain, steps=3, spacing="trailing")
    keys, told = image_keys(jax.random.key(0), jnp.arange(4)), Condition(label=jnp.arange(4))
    conditional = model.conditional_denoiser(loaded.weights, sampler.schedule)
    z = sample(conditional.given(told), sampler, initial_noise(keys, (4, 4, 4)), keys).x_0
    stage = model.codec.first_stage.model.stage
    x = stage.image(stage.decoded(frozen.params, z / frozen.scale))
    np.testing.assert_allclose(images_in(tmp_path / "out"), (np.asarray(x) + 1) * 127.5, atol=0.51)


def test_a_run_goes_on_without_the_directory_of_its_first_stage(invoke, run, config_file):
    result = invoke(
        "train",
        "--config",
        config_file(4),
        "--workdir",
        run,
        *CLASSES,
        *OVER,
        "--config.train.sample_every=4",
    )
    assert result.code == 0, result.err
    assert "resuming at step 4 of 4; 1,497 images of 8x8x1 as latents of 4x4x4 times" in result.err


@pytest.mark.slow
def test_latents_that_are_kept_train_the_same_model(run, stage, data_dir, tmp_path):
    kept = train(
        tmp_path,
        data_dir,
        4,
        f"--config.first_stage.ckpt={stage}",
        f"--config.first_stage.cache={tmp_path / 'kept'}",
        *CLASSES,
    )
    np.testing.assert_allclose(read_losses(kept), read_losses(run), rtol=1e-5)
    assert len(list((tmp_path / "kept").glob("latents-*-of-00002.npy"))) == 2


@pytest.mark.slow
def test_devices_and_a_stop_on_the_way_change_nothing(stage, config_file, data_dir, tmp_path):
    over = [
        f"--config.first_stage.ckpt={stage}",
        "--config.optimizer.clip_scope=average",
        "--config.data.flip=true",
    ]
    (tmp_path / "one").mkdir()
    wanted = read_losses(train(tmp_path / "one", data_dir, 4, *over))
    for parallel in ("pmap", "fsdp"):
        for steps in (2, 4):  # the second resumes the first
            argv = [
                "--config",
                config_file(steps),
                "--workdir",
                tmp_path / parallel,
                f"--config.parallel={parallel}",
            ]
            train_on_devices(4, *argv, *over)
        np.testing.assert_allclose(read_losses(tmp_path / parallel), wanted, rtol=1e-4)


@pytest.mark.slow
def test_inpainting_shows_the_picture_where_the_mask_is_black(invoke, run, photo, tmp_path):
    """The mask ends in the middle of a latent, so that what is painted and what is kept share
    one."""
    argv = [
        "--inpaint",
        tmp_path / "photo.png",
        "--mask",
        tmp_path / "mask.png",
        *FAST,
        "--out",
        tmp_path / "out",
    ]
    result = invoke("sample", "--ckpt", run, *argv)
    assert result.code == 0, result.err
    images = images_in(tmp_path / "out")[..., 0]
    np.testing.assert_array_equal(images[:, 3:], np.broadcast_to(photo[3:], (4, 5, 8)))
    assert all(np.any(image[:3] != photo[:3]) for image in images)
    painted_over = photo.copy()
    # what the mask hides must not show in the latents that are kept
    painted_over[:3] = 255 - photo[:3]
    Image.fromarray(painted_over).save(tmp_path / "photo.png")
    again = [*argv[:-1], tmp_path / "again"]
    assert invoke("sample", "--ckpt", run, *again).code == 0
    np.testing.assert_array_equal(images_in(tmp_path / "again")[..., 0], images)


@pytest.mark.slow
def test_a_little_strength_gives_what_the_first_stage_makes_of_the_picture(
    invoke, run, photo, tmp_path
):
    argv = [
        "--init_image",
        tmp_path / "photo.png",
        "--strength",
        "0.05",
        "--num_samples",
        "4",
        "--out",
        tmp_path / "out",
    ]
    result = invoke("sample", "--ckpt", run, *argv)
    assert result.code == 0, result.err
    loaded = load_trained(run)
    alone = loaded.model.decode(
        loaded.weights, loaded.model.encode(loaded.weights, photo[None, ..., None])
    )
    images = images_in(tmp_path / "out").astype(float)
    assert (
        np.abs(images - np.asarray(alone, float)).mean()
        < 0.3 * np.abs(images - photo[None, ..., None]).mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "columns"),
    [
        (
            ["--interpolate", "photo.png", "photo.png", "--steps", "4", "--interpolate_steps", "2"],
            4,
        ),
        (["--shared_latents", "--steps", "4"], 9),
        (["--interpolate_seeds", "1,2", "--steps", "4", "--interpolate_steps", "2"], 2),
        # the photo, it through the first stage alone, x_T, back
        (["--reconstruct", "photo.png", "--steps", "4"], 4),
    ],
    ids=["interpolate", "shared_latents", "interpolate_seeds", "reconstruct"],
)
def test_drawings_on_the_chain_are_of_decoded_images(
    invoke, run, photo, tmp_path, monkeypatch, flags, columns
):
    monkeypatch.chdir(tmp_path)
    result = invoke("sample", "--ckpt", run, *flags, "--labels", "3", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    with Image.open(next((tmp_path / "out").glob("*.png"))) as picture:
        side = 88 + 2  # of an image of 8 pixels, enlarged, and its border
        assert picture.size[1] % side == 22 + 2
        assert picture.size[0] // side == columns


@pytest.mark.slow
def test_a_classifier_of_noisy_latents_guides_and_one_of_pixels_does_not(
    invoke, refused, run, stage, data_dir, tmp_path
):
    fields = ["--config.objective=classifier", "--config.condition.num_classes=10"]
    for name, more in (("latents", [f"--config.first_stage.ckpt={stage}"]), ("pixels", [])):
        (tmp_path / name).mkdir()
        train(tmp_path / name, data_dir, 2, *fields, *more)
    guided = [
        "--ckpt",
        run,
        *FAST,
        "--guidance_scale",
        "2",
        "--out",
        tmp_path / "out",
        "--classifier",
    ]
    result = invoke("sample", *guided, tmp_path / "latents" / "run")
    assert result.code == 0, result.err
    assert invoke("sample", "--ckpt", run, *FAST, "--out", tmp_path / "alone").code == 0
    assert np.any(images_in(tmp_path / "out") != images_in(tmp_path / "alone"))
    refused(
        "sample",
        *guided,
        tmp_path / "pixels" / "run",
        says=["and the model are not of the same latents"],
    )


@pytest.mark.slow
def test_an_average_of_a_model_over_latents_has_its_first_stage(invoke, stage, data_dir, tmp_path):
    """Of the run's own law, it gives the run's own images."""
    fields = [f"--config.first_stage.ckpt={stage}", "--config.ema.decays=0.5,"]
    made = train(tmp_path, data_dir, 2, *fields)
    assert invoke("ema", "--ckpt", made, "--average", "decay_0.5").code == 0
    for ckpt, out in ((made / "ema" / "decay_0.5", "average"), (made, "run")):
        result = invoke("sample", "--ckpt", ckpt, *FAST, "--out", tmp_path / out)
        assert result.code == 0, result.err
    np.testing.assert_array_equal(images_in(tmp_path / "average"), images_in(tmp_path / "run"))


@pytest.mark.slow
def test_decoded_samples_are_compared_with_images(invoke, run, tmp_path):
    chain = ["--sampler", "ddim", "--steps", "3", "--num_samples", "20"]
    metrics = ["--metric", "frechet_pixels,classification_accuracy"]
    result = invoke("evaluate", "--ckpt", run, *metrics, *chain, "--out", tmp_path)
    assert result.code == 0, result.err
    assert invoke("sample", "--ckpt", run, *chain, "--out", tmp_path / "samples").code == 0
    (frechet,), (accuracy,) = (
        [json.loads(path.read_text()) for path in tmp_path.glob(f"{name}_*.json")]
        for name in ("frechet_pixels", "classification_accuracy")
    )
    digits = np.rint(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
    trained_on = digits[np.random.RandomState(0).permutation(len(digits))][:1497]
    distance = pixel_frechet_distance(images_in(tmp_path / "samples"), trained_on)
    assert frechet["frechet_samples"] == pytest.approx(distance, rel=1e-2)
    assert accuracy["fitted_to_training_images"] > 0.9 > accuracy["fitted_to_samples"]


def test_what_has_no_meaning_for_latents_is_refused(refused, run):
    for metric in ("bpd", "bpd_ode", "rate_distortion"):
        refused(
            "evaluate",
            "--ckpt",
            run,
            "--metric",
            metric,
            says=["is one of latents", "take frechet_pixels"],
        )
    refused(
        "sample",
        "--ckpt",
        run,
        "--clip",
        "static",
        says=["clip static: the x_0 of this model is a latent"],
    )


def test_a_first_stage_that_is_missing_or_has_changed_is_refused(
    refused, run, stage, config_file, tmp_path
):
    new = ["--config", config_file(4), "--workdir", tmp_path / "new"]
    refused(
        "train", *new, *OVER, says=["first_stage.ckpt is nowhere, and there is no such directory"]
    )
    missing = f"--config.first_stage.ckpt={tmp_path / 'emoji_vae'}"
    refused("train", *new, missing, says=["train a first stage, with the config emoji_vae, say"])
    copied = shutil.copytree(run, tmp_path / "copied")
    settings = json.loads((copied / "config.json").read_text())
    settings["frozen_first_stage"]["sha256"] = 64 * "0"
    (copied / "config.json").write_text(json.dumps(settings))
    again = [
        "--config",
        config_file(4),
        "--workdir",
        copied,
        *CLASSES,
        "--config.train.sample_every=4",
    ]
    words = [
        "has changed since this run was begun with it (SHA-256 000000000000 then",
        "give the run's own directory",
    ]
    refused("train", *again, f"--config.first_stage.ckpt={stage}", says=words)


def test_a_run_over_latents_stays_one_and_its_first_stage_the_one_it_was_begun_with(
    refused, invoke, run, trained, stage, config_file, tmp_path
):
    pixels = [
        "--config",
        config_file(10),
        "--workdir",
        shutil.copytree(trained, tmp_path / "pixels"),
    ]
    refused(
        "train",
        *pixels,
        f"--config.first_stage.ckpt={stage}",
        says=["holds a run over pixels, and this config"],
    )
    copied = shutil.copytree(run, tmp_path / "copied")
    again = [
        "--config",
        config_file(4),
        "--workdir",
        copied,
        *CLASSES,
        "--config.train.sample_every=4",
    ]
    refused(
        "train", *again, says=["holds a run over latents, and this config is of one over pixels"]
    )
    # moved away, because it was damaged: what was saved with the checkpoint counts
    (copied / "config.json").unlink()
    (tmp_path / "empty").mkdir()
    result = invoke("train", *again, f"--config.first_stage.ckpt={tmp_path / 'empty'}")
    assert result.code == 0, result.err
    assert json.loads((copied / "config.json").read_text())["frozen_first_stage"][
        "sha256"
    ] == first_stage_digest(stage)


def first_stage_digest(stage):
    return weights_digest(load_first_stage(stage).params)


def test_models_of_one_first_stage_with_another_scale_are_not_of_one_kind(run):
    loaded = load_trained(run)
    frozen = loaded.weights.frozen._replace(scale=jnp.float32(0.18215))
    scaled = dataclasses.replace(loaded, weights=loaded.weights._replace(frozen=frozen))
    assert is_of_one_kind(loaded, loaded)
    assert not is_of_one_kind(loaded, scaled)


@pytest.mark.slow
def test_another_shape_than_the_first_stages_is_refused(refused, stage, config_file, tmp_path):
    over = [
        "--config",
        config_file(4),
        "--workdir",
        tmp_path / "new",
        f"--config.first_stage.ckpt={stage}",
    ]
    for change, says in (
        ("data.channels=3", "data.channels is 3, but the first stage of"),
        ("data.image_size=7", "data.image_size is 7, which the factor 2 of the first stage of"),
        ("model.ch_mult=1,1,1,1", "Over latents of 4x4x4: The height 4 is not divisible by 8"),
        (
            "condition.low_res_factor=2",
            "a model over latents can be given no image of lower resolution",
        ),
        ("first_stage.kind=vq", "whose first stage brings its own"),
        ("first_stage.latent_scale=-1", "first_stage.latent_scale is -1.0: it must be at least 0"),
        ("first_stage.cache=gs://bucket/latents", "latents are read from a disk at every step"),
    ):
        refused("train", *over, f"--config.{change}", says=[says])


def test_fields_of_latents_do_nothing_for_pixels(refused, config_file, tmp_path):
    for change in ("latent_scale=2", "cache=somewhere"):
        argv = [
            "--config",
            config_file(4),
            "--workdir",
            tmp_path / "new",
            f"--config.first_stage.{change}",
        ]
        refused("train", *argv, says=["but a diffusion model without first_stage.ckpt has none"])
