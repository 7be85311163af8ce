"""The metric memorization: planted training digits among samples are named, others are not."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.measuring import memorization_distances, memorization_metric
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, Features, Memorization
from ddpm_jax.measuring.measurement import write_measurement
from ddpm_jax.measuring.metrics import METRICS
from ddpm_jax.tasks.sampling_settings import Sampling

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "runs" / "ten_steps"
TWO_STEPS = Sampling(sampler="ddim", steps=2)


@pytest.fixture(scope="module")
def trained():
    return load_trained(str(RUN))


@pytest.fixture(scope="module")
def splits(trained):
    return {name: load_split(trained.model.config.data, name) for name in ("train", "test")}


@pytest.fixture
def measure(monkeypatch, trained, tmp_path):
    """Measure given samples; the bits are another test's."""

    def measure(samples, *, gap=False, **settings):
        monkeypatch.setattr(
            memorization_metric, "kept_samples", lambda generator, settings, directory: samples
        )
        if not gap:
            monkeypatch.setattr(memorization_metric, "_gap", lambda *_: (None, "none"))
        settings = Memorization(num_samples=len(samples), sampling=TWO_STEPS, **settings)
        return METRICS["memorization"].measure(trained, EvaluatedImages(), settings, tmp_path)

    return measure


def _samples(splits, planted):
    """Digits moved by a pixel, as a model without memory might draw them; and training digits."""
    samples = np.roll(splits["test"].images[:60], 1, axis=2)
    samples[:planted] = splits["train"].images[100 : 100 + planted]
    return samples


def test_samples_that_are_training_images_are_named_with_their_originals(
    measure, trained, splits, tmp_path
):
    found = measure(_samples(splits, 2))
    values = found.values
    assert values["verdict"].startswith("Copies: 2 of 60 samples")
    assert sorted((pair.sample, pair.train) for pair in values["copies"]) == [(0, 100), (1, 101)]
    assert all(pair.distance == 0 for pair in values["copies"])
    assert values["distances"] == {"name": "pixels", "range": "0..255", "mirrored": False}
    paths = write_measurement("memorization", found, trained, seed=0, directory=tmp_path)
    record = json.loads(paths[0].read_text())
    assert record["pairs"][0]["train"] in (100, 101)
    assert len(record["pairs"]) == memorization_metric.SHOWN
    # twelve columns of samples, training and held-out images, enlarged; the first is its original
    picture = np.asarray(Image.open(paths[1]))
    cell = 64 + 2
    grid = picture[-(3 * cell + 2) :, -(12 * cell + 2) :]
    rows = [grid[2 + i * cell : 2 + i * cell + 64, 2:66] for i in range(3)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


def test_digits_that_are_no_copies_are_called_none(measure, splits):
    found = measure(_samples(splits, 0))
    assert found.values["verdict"].startswith("No sign of memorization")
    assert found.values["copies"] == ()
    assert found.text.splitlines()[0] == found.values["verdict"]


def test_mirrored_training_images_count_where_the_model_has_seen_them(measure, splits, monkeypatch):
    monkeypatch.setattr(memorization_distances, "mirrors_images", lambda trained: True)
    samples = _samples(splits, 0)
    samples[7] = splits["train"].images[100][:, ::-1]
    found = measure(samples)
    assert found.values["distances"]["mirrored"]
    assert [(pair.sample, pair.train) for pair in found.values["copies"]] == [(7, 100)]


@pytest.mark.full
def test_copies_are_found_in_features_too(measure, splits):
    compared = Features(features="digits")
    found = measure(_samples(splits, 3), distances="features", compared=compared)
    assert {pair.sample for pair in found.values["copies"]} >= {0, 1, 2}
    assert found.values["distances"]["name"] == "digits"
    assert found.suffix != measure(_samples(splits, 3)).suffix


@pytest.mark.full
def test_the_bits_of_training_and_held_out_images_are_compared(measure, splits):
    found = measure(_samples(splits, 0)[:20], gap=True)
    gap = found.values["bits_gap"]
    assert 0 < gap.standard_error < 3
    assert abs(gap.value) < 4 * gap.standard_error, "ten steps remember nothing"
    assert f"{gap.value:.4f} ± {gap.standard_error:.4f}" in found.text


def test_nothing_held_out_is_refused_before_a_sample_is_made(trained):
    settings = Memorization(num_samples=4, sampling=TWO_STEPS)
    with pytest.raises(UsageError, match="compares with images that were not trained on"):
        METRICS["memorization"].measure(trained, EvaluatedImages(split="train"), settings, None)
