"""Metrics of models that read texts: the closed forms of copies and of chance, and refusals."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.measuring import caption_metrics, measured_samples, sample_metrics
from ddpm_jax.measuring.bits_per_dim import bits_per_dim
from ddpm_jax.measuring.drawn_captions import draw_captions
from ddpm_jax.measuring.evaluation_settings import (
    EvaluatedImages,
    FlowLikelihood,
    SampleQuality,
    VariationalBound,
)
from ddpm_jax.measuring.likelihood_bound import measure_bound
from ddpm_jax.measuring.likelihood_flow import measure_flow
from ddpm_jax.measuring.metrics import METRICS
from ddpm_jax.tasks.sampling_settings import Sampling

RUNS = pathlib.Path(__file__).parents[1] / "fixtures" / "runs"
TWO_STEPS = Sampling(sampler="ddim", steps=2)
HELD_OUT = 300  # digits


@pytest.fixture(scope="module")
def splits(reads_texts):
    data = reads_texts.model.config.data
    return {name: load_split(data, name) for name in ("train", "test")}


def measured(monkeypatch, name, trained, samples, **images):
    """The values of a metric whose samples are given."""
    for module in (caption_metrics, sample_metrics):
        monkeypatch.setattr(module, "draw_samples", lambda generator, settings: samples)
    settings = SampleQuality(num_samples=len(samples), sampling=TWO_STEPS)
    return METRICS[name].measure(trained, EvaluatedImages(**images), settings, None).values


def drawn_rows(splits, count, split="test"):
    return np.arange(count) * len(splits[split]) // count


@pytest.mark.full
def test_copies_of_the_training_pictures_of_the_captions_are_retrieved(
    monkeypatch, reads_texts, splits
):
    copies = splits["train"].images[drawn_rows(splits, 50, "train")]
    found = measured(monkeypatch, "retrieval", reads_texts, copies, split="train")
    for name in ("category", "category_of_5", "caption_of_5"):
        assert found[name].mean == 1
        assert found[name].standard_error == 0
    shares = np.bincount(splits["train"].labels) / len(splits["train"])
    assert found["category_chance"] == pytest.approx(np.sum(shares**2), abs=0.005)


def test_pictures_of_other_captions_are_retrieved_as_by_chance(monkeypatch, reads_texts, splits):
    rng = np.random.default_rng(0)
    pictures = splits["train"].images[rng.permutation(len(splits["train"]))[:HELD_OUT]]
    found = measured(monkeypatch, "retrieval", reads_texts, pictures)
    for name in ("category", "category_of_5", "caption_of_5"):
        # within three standard errors; the five nearest are much alike, so at most chance's share
        excess = found[name].mean - found[f"{name}_chance"]
        assert excess < 3 * found[name].standard_error
    category = found["category"]
    assert abs(category.mean - found["category_chance"]) < 3 * category.standard_error
    assert found["held_out"]["category"].mean > 0.95  # the digits have near neighbours


def test_samples_that_show_the_class_of_their_caption_are_right(monkeypatch, reads_texts, splits):
    pictures = splits["test"].images
    found = measured(monkeypatch, "caption_accuracy", reads_texts, pictures)
    assert found["classifier"]["kind"] == "logistic regression on pixels"
    assert found["accuracy"] == found["held_out_accuracy"]  # the samples are the held-out images
    p = found["accuracy"].mean
    assert 0.9 < p < 1
    assert found["accuracy"].standard_error == pytest.approx(np.sqrt(p * (1 - p) / 299))
    assert sum(part["right"] for part in found["per_class"].values()) == round(300 * p)
    assert sum(part["of"] for part in found["per_class"].values()) == 300


def test_samples_of_another_class_are_never_right(monkeypatch, reads_texts, splits):
    """Each sample is a training picture of the next class: the classifier knows nearly all."""
    wanted = (splits["test"].labels[drawn_rows(splits, 100)] + 1) % 10
    train = splits["train"]
    pictures = np.stack([train.images[np.argmax(train.labels == label)] for label in wanted])
    found = measured(monkeypatch, "caption_accuracy", reads_texts, pictures)
    assert found["accuracy"].mean == 0
    assert found["chance"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.full
def test_a_classifier_of_copies_is_that_of_their_captions_classes(monkeypatch, reads_texts, splits):
    pictures = splits["test"].images
    found = measured(monkeypatch, "classification_accuracy", reads_texts, pictures)
    # fitted to the very images that it is tested on
    assert 0.95 < found["fitted_to_training_images"] < found["fitted_to_samples"]


def test_captions_are_spread_over_the_split_and_over_those_of_an_image(reads_texts, splits):
    found = draw_captions(reads_texts.model, splits["test"], 30, split="test")
    np.testing.assert_array_equal(found.rows, np.arange(0, HELD_OUT, 10))
    captions = splits["test"].captions
    assert all(found.texts[i] == captions[row][i % 4] for i, row in enumerate(found.rows))
    more = draw_captions(reads_texts.model, splits["test"], 2 * HELD_OUT, split="test")
    np.testing.assert_array_equal(np.bincount(more.rows), 2)


def test_the_record_tells_the_captions_and_the_guidance(monkeypatch, reads_texts, splits):
    pictures = splits["test"].images[:20]
    found = measured(monkeypatch, "retrieval", reads_texts, pictures)
    texts = draw_captions(reads_texts.model, splits["test"], 20, split="test").texts
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    assert found["prompts"] == {"split": "test", "number": 20, "sha256": digest}
    assert "prompt" not in found
    assert found["guidance"] == {"kind": "classifier-free", "scale": 7.5}


@pytest.mark.slow
def test_samples_are_drawn_of_each_caption(reads_texts):
    """Without a prompt the images are those of the same captions given as prompts."""
    from ddpm_jax.measuring.measured_samples import draw_samples, open_samples

    def samples(sampling):
        settings = SampleQuality(num_samples=4, sampling=sampling)
        found = open_samples("frechet_pixels", reads_texts, EvaluatedImages(), settings, None)
        return found, draw_samples(found.generator, settings)

    found, images = samples(TWO_STEPS)
    given, same = samples(dataclasses.replace(TWO_STEPS, prompt=found.drawn.texts))
    assert given.drawn is None
    assert given.record["prompt"] == list(found.drawn.texts)
    np.testing.assert_array_equal(images, same)
    _, other = samples(dataclasses.replace(TWO_STEPS, prompt=found.drawn.texts[::-1]))
    assert not np.array_equal(images, other)


@pytest.mark.parametrize("name", ["caption_accuracy", "retrieval", "clip_score"])
def test_a_model_without_texts_is_refused(name):
    settings = METRICS[name].settings()
    with pytest.raises(UsageError, match=f"{name}: this model was trained without texts"):
        METRICS[name].measure(load_trained(RUNS / "unet"), EvaluatedImages(), settings, None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("caption_accuracy", "leave prompt out"),
        ("retrieval", "leave prompt out"),
        ("classification_accuracy", "leave prompt out"),
        ("clip_score", "say by clip_model where it is"),
    ],
)
def test_prompts_whose_class_is_not_known_and_a_missing_clip_are_refused(name, says, reads_texts):
    settings = METRICS[name].settings(
        num_samples=2, sampling=dataclasses.replace(TWO_STEPS, prompt=("a seven",))
    )
    with pytest.raises(UsageError, match=says):
        METRICS[name].measure(reads_texts, EvaluatedImages(), settings, None)


@pytest.mark.parametrize("name", ["caption_accuracy", "retrieval", "classification_accuracy"])
def test_captions_without_classes_are_refused_before_a_text_is_encoded(
    monkeypatch, name, reads_texts, splits
):
    bare = dataclasses.replace(splits["test"], num_classes=0)
    monkeypatch.setattr(measured_samples, "load_evaluated", lambda *_, **__: (bare, {}))
    monkeypatch.setattr(measured_samples, "load_split", lambda *_, **__: bare)
    monkeypatch.setattr(
        measured_samples, "make_generator", lambda *_: pytest.fail("texts are encoded")
    )
    settings = METRICS[name].settings(num_samples=2, sampling=TWO_STEPS)
    with pytest.raises(UsageError, match=f"{name}: the images of this data have no classes"):
        METRICS[name].measure(reads_texts, EvaluatedImages(), settings, None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bound", "ode"])
def test_the_likelihood_is_that_of_images_given_their_first_caption(method, reads_texts, splits):
    images = splits["test"].images[:3]
    captions = [splits["test"].captions[i][0] for i in range(3)]
    options = {"timestep_stride": 10} if method == "bound" else {"rtol": 0.1, "atol": 0.1}
    of_split = EvaluatedImages(num_images=3)
    if method == "bound":
        found = measure_bound(reads_texts, of_split, VariationalBound(**options, batch_size=2))
        total, record = found.summary.total.mean, found.record
    else:
        found = measure_flow(reads_texts, of_split, FlowLikelihood(**options, batch_size=2))
        total, record = found.bits.bits_per_dim.mean(), found.record
    given = bits_per_dim(reads_texts, images, method, captions=captions, batch_size=2, **options)
    assert given.total.mean == pytest.approx(total, rel=1e-6)
    assert record["given"] == ["their caption"]
    assert "captions=" in record["data"]
    others = bits_per_dim(
        reads_texts, images, method, captions=captions[::-1], batch_size=2, **options
    )
    differs = [a != b for a, b in zip(captions, captions[::-1], strict=True)]
    np.testing.assert_array_equal(given.values != others.values, differs)


def test_captions_that_a_model_cannot_have_are_refused(reads_texts, splits):
    images = splits["test"].images[:2]
    for captions, says in ((None, "captions: missing"), (["one"], "captions: 1, but there are 2")):
        with pytest.raises(UsageError, match=says):
            bits_per_dim(reads_texts, images, captions=captions)
    with pytest.raises(UsageError, match="captions: this model was trained without texts"):
        bits_per_dim(load_trained(RUNS / "unet"), images, captions="one")


def test_a_likelihood_of_data_without_captions_is_refused(reads_texts, splits):
    config = reads_texts.model.config.copy_and_resolve_references()
    config.data.captions = ""
    model = dataclasses.replace(reads_texts.model, config=config)
    bare = dataclasses.replace(reads_texts, model=model)
    with pytest.raises(UsageError, match=r"the data has none: set data\.captions"):
        measure_bound(bare, EvaluatedImages(num_images=2), VariationalBound())
