"""`python sample.py` with labels and guidance: what the flags ask for is what the functions do, or
is refused."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import host_memory, randomness
from ddpm_jax.data.transforms import to_uint8
from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.experiments.guides import load_classifier
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.generation import generating
from ddpm_jax.models.condition import Condition
from ddpm_jax.samplers import guidance
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

STEPS = ["--sampler", "ddim", "--steps", 4]


def read(out):
    with np.load(next(out.glob("samples-*.npz"))) as shard:
        return shard["images"]


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def by_hand(run, labels, make_denoiser):
    """The images that `make_denoiser(conditional denoiser, schedule, condition, loaded)` gives in 4
    steps of DDIM."""
    loaded = load_trained(run)
    sampler = make_sampler("ddim", loaded.model.chain, steps=4, spacing="trailing")
    conditional = loaded.model.conditional_denoiser(loaded.weights, sampler.schedule)
    denoiser = make_denoiser(
        conditional, sampler.schedule, Condition(label=np.array(labels, np.int32)), loaded
    )
    keys = randomness.image_keys(jax.random.key(0), np.arange(len(labels)))
    x_T = randomness.initial_noise(keys, loaded.model.image_shape)
    return np.asarray(to_uint8(jax.jit(lambda x_T: sample(denoiser, sampler, x_T, keys).x_0)(x_T)))


def assert_same_images(actual, expected):
    """But for a level in a few pixels, which rounding decides."""
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.slow
def test_labels_are_taken_in_turn_and_make_the_columns_of_the_grid(
    invoke, trained_by_class, tmp_path
):
    argv = ["--ckpt", trained_by_class, "--num_samples", 20, *STEPS, "--out", tmp_path / "o"]
    assert invoke("sample", *argv).code == 0
    assert manifest(tmp_path / "o")["labels"] == list(range(10))
    with Image.open(tmp_path / "o" / "grid.png") as grid:
        assert grid.size == (10 * 66 + 2, 2 * 66 + 2 + 22)  # under the names of the classes
    expected = by_hand(
        trained_by_class,
        [*range(10)] * 2,
        lambda conditional, schedule, condition, _: CLIPPINGS["static"](
            conditional.given(condition)
        ),
    )
    assert_same_images(read(tmp_path / "o"), expected)


@pytest.mark.slow
def test_classifier_free_guidance_is_the_function_in_its_interval_rescaled_and_clipped(
    invoke, trained_by_class, tmp_path
):
    flags = [
        "--labels",
        "3,5",
        "--guidance_scale",
        4,
        "--guidance_interval",
        "0.2,0.8",
        "--guidance_rescale",
        0.5,
    ]
    argv = [
        "--ckpt",
        trained_by_class,
        "--num_samples",
        4,
        *STEPS,
        *flags,
        "--clip",
        "dynamic",
        "--out",
        tmp_path / "o",
    ]
    assert invoke("sample", *argv).code == 0

    def guided(conditional, schedule, condition, loaded):
        null = Condition(label=np.full(4, 10, np.int32))
        interval = guidance.interval_from_fractions(loaded.model.chain, 0.2, 0.8)
        denoiser = guidance.classifier_free(
            conditional,
            condition,
            null,
            scale=4.0,
            interval=interval,
            rescale=0.5,
        )
        return CLIPPINGS["dynamic"](denoiser)

    assert_same_images(read(tmp_path / "o"), by_hand(trained_by_class, [3, 5, 3, 5], guided))
    record = manifest(tmp_path / "o")
    assert record["guidance"] == {
        "kind": "classifier-free",
        "scale": 4,
        "interval": [0.2, 0.8],
        "rescale": 0.5,
    }
    assert record["labels"] == [3, 5]
    assert record["clip"] == "dynamic"


@pytest.mark.slow
def test_guidance_away_from_an_earlier_checkpoint(invoke, trained, tmp_path):
    flags = ["--weaker", trained, "--weaker_step", 8, "--guidance_scale", 2]
    argv = ["--ckpt", trained, "--num_samples", 3, *STEPS, "--out", tmp_path / "o"]
    assert invoke("sample", *argv, *flags).code == 0
    early = load_trained(trained, step=8)

    def guided(conditional, schedule, condition, loaded):
        weaker = early.model.conditional_denoiser(early.weights, schedule)
        pair = (model.given(None) for model in (conditional, weaker))
        return CLIPPINGS["static"](guidance.autoguidance(*pair, scale=2.0))

    assert_same_images(read(tmp_path / "o"), by_hand(trained, [0, 0, 0], guided))
    assert manifest(tmp_path / "o")["guidance"]["weaker_step"] == 8


@pytest.mark.slow
def test_guidance_by_a_classifier_of_an_unconditional_model(invoke, trained, train_with, tmp_path):
    run = train_with("--config.objective=classifier", "--config.condition.num_classes=10")
    flags = ["--classifier", run, "--guidance_scale", 3, "--labels", "7"]
    assert (
        invoke(
            "sample", "--ckpt", trained, "--num_samples", 3, *STEPS, *flags, "--out", tmp_path / "o"
        ).code
        == 0
    )
    classifier = load_classifier(run, load_trained(trained))

    def guided(conditional, schedule, condition, loaded):
        log_prob = classifier.model.class_log_prob(classifier.weights)
        denoiser = guidance.classifier_guidance(
            conditional.given(None), log_prob, condition.label, scale=3.0
        )
        return CLIPPINGS["static"](denoiser)

    assert_same_images(read(tmp_path / "o"), by_hand(trained, [7, 7, 7], guided))
    assert manifest(tmp_path / "o")["guidance"]["kind"] == "classifier"


@pytest.mark.slow
def test_a_model_that_enlarges_is_told_the_picture_at_the_low_resolution(
    invoke, refused, train_with, tmp_path
):
    run = train_with("--config.condition.low_res_factor=2")
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(photo)
    argv = ["--ckpt", run, "--num_samples", 2, *STEPS, "--out", tmp_path / "o"]
    refused("sample", *argv, says=["enlarges low-resolution images", "give one by low_res"])
    assert invoke("sample", *argv, "--low_res", photo).code == 0
    other = tmp_path / "other.png"
    Image.fromarray(255 - pixels).save(other)
    assert invoke("sample", *argv[:-1], tmp_path / "p", "--low_res", other).code == 0
    assert np.any(read(tmp_path / "o") != read(tmp_path / "p"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--labels", "10"], ["Label 10 is no class", "0 to 9"]),
        (["--labels", "three"], ["labels three", "class numbers"]),
        (["--labels", "9" * 20], ["labels 9", "class numbers"]),
        (["--labels", "²"], ["labels ²", "class numbers"]),
        (["--guidance_scale", "-1"], ["guidance_scale is -1", "number in 0.."]),
        (["--guidance_scale", "much"], ["guidance_scale is 'much'", "number in 0.."]),
        (
            ["--guidance_scale", "2", "--guidance_interval", "0.8,0.2"],
            ["guidance interval is 0.8 to 0.2"],
        ),
        (
            ["--guidance_scale", "2", "--guidance_interval", "0.8"],
            ["guidance_interval is 0.8", "2 numbers in 0..1"],
        ),
        (
            ["--guidance_scale", "2", "--guidance_rescale", "2"],
            ["guidance_rescale is 2", "number in 0..1"],
        ),
        (["--guidance_interval", "0,1"], ["guidance_interval needs guidance_scale"]),
        (["--clip", "statc"], ["Unknown clipping 'statc'", "Did you mean 'static'"]),
        (["--low_res", "a.png"], ["does not enlarge"]),
        (["--weaker_step", "8"], ["weaker_step says which checkpoint of weaker"]),
    ],
)
def test_what_cannot_be_is_refused(refused, trained_by_class, flags, says):
    refused("sample", "--ckpt", trained_by_class, *flags, says=says)


@pytest.mark.full
def test_guidance_that_the_model_cannot_have_is_refused(
    refused, trained, trained_by_class, train_with
):
    refused(
        "sample",
        "--ckpt",
        trained,
        "--guidance_scale",
        2,
        says=["trained without labels", "give classifier or weaker"],
    )
    told = ["--guidance_scale", 2, "--weaker", trained]
    refused(
        "sample",
        "--ckpt",
        trained_by_class,
        *told,
        says=["differs from this one in its conditions"],
    )
    refused(
        "sample", "--ckpt", trained, *told, "--classifier", trained, says=["two kinds of guidance"]
    )
    refused(
        "sample",
        "--ckpt",
        trained,
        "--guidance_scale",
        2,
        "--classifier",
        trained,
        says=["not a classifier"],
    )


@pytest.mark.parametrize(
    ("flags", "there", "says"),
    [
        (["--labels", "3"], 2**40, ["images of at least two classes", "of more labels"]),
        ([], 2**20, ["A classifier of 1,497 images of 64 numbers needs", "take another metric"]),
    ],
)
def test_a_classifier_that_cannot_be_fitted_is_refused_before_a_sample_is_made(
    refused, trained_by_class, tmp_path, monkeypatch, flags, there, says
):
    monkeypatch.setattr(host_memory, "available", lambda: there)
    monkeypatch.setattr(
        generating, "generate_batches", lambda *args, **kwargs: pytest.fail("samples are made")
    )
    argv = [
        "--ckpt",
        trained_by_class,
        "--metric",
        "classification_accuracy",
        "--out",
        tmp_path,
        *flags,
    ]
    refused("evaluate", *argv, says=says)
