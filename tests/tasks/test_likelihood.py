"""Bits per dimension of images from Python: those that evaluate.py finds, and what is refused."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax.api
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.measuring.bits_per_dim import bits_per_dim
from ddpm_jax.measuring.evaluation_settings import (
    EvaluatedImages,
    FlowLikelihood,
    SampleQuality,
    VariationalBound,
)
from ddpm_jax.measuring.likelihood_bound import measure_bound
from ddpm_jax.measuring.likelihood_flow import measure_flow

RUNS = pathlib.Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture(scope="module")
def trained():
    return load_trained(RUNS / "unet")


@pytest.fixture(scope="module")
def by_class():
    return load_trained(RUNS / "dit_by_class")


@pytest.fixture(scope="module")
def digits(trained, data_dir):
    """The first three held-out digits and their labels."""
    source = load_split(trained.model.config.data, "test", data_dir=data_dir)
    examples = [source[i] for i in range(3)]
    return np.stack([e["image"] for e in examples]), [int(e["label"]) for e in examples]


@pytest.mark.full
def test_the_bound_of_images_is_that_of_the_split_they_are_from(trained, digits, data_dir):
    settings = VariationalBound(draws=2, timestep_stride=4, seed=3, batch_size=2)
    images = EvaluatedImages(num_images=3, data_dir=data_dir)
    summary = measure_bound(trained, images, settings).summary
    found = bits_per_dim(trained, digits[0], draws=2, timestep_stride=4, seed=3, batch_size=2)
    assert found.total == summary.total
    assert found.values.shape == found.standard_errors.shape == (3,)
    assert found.values.mean() == pytest.approx(found.total.mean)
    assert np.all(found.standard_errors > 0)
    np.testing.assert_array_equal(found.num_evaluations, summary.visits.sum() // 3)
    assert found.solved.all()


@pytest.mark.slow
def test_the_flow_gives_each_image_its_own_value_and_says_what_it_took(trained, digits, data_dir):
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    images = EvaluatedImages(num_images=3, data_dir=data_dir)
    bits = measure_flow(trained, images, FlowLikelihood(**tolerances)).bits
    found = bits_per_dim(trained, digits[0], "ode", **tolerances)
    np.testing.assert_array_equal(found.values, bits.bits_per_dim)
    np.testing.assert_array_equal(found.num_evaluations, bits.num_evaluations[:, 0])
    assert np.isnan(found.standard_errors).all()  # one draw says nothing of its own error
    assert found.solved.all()


@pytest.mark.full
def test_the_label_decides_the_likelihood_of_a_model_with_classes(by_class, digits):
    images, labels = digits
    values = [
        bits_per_dim(by_class, images, labels=wanted, timestep_stride=20).values
        for wanted in (labels, list(map(str, labels)), [(label + 1) % 10 for label in labels])
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.all(values[0] != values[2])


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        (np.zeros((2, 16, 16, 1), np.uint8), {}, "are 16x16x1, but the model was trained on 8x8x1"),
        (np.zeros((2, 8, 8, 1), np.float32), {}, r"images is float32 \[2, 8, 8, 1\]: give uint8"),
        (np.zeros((8, 8, 1), np.uint8), {}, r"give uint8 \[N, H, W, C\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), {}, "N at least 1"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"labels": [1, 2]}, "trained without labels"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"method": "exact"}, "Unknown method 'exact'"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"draws": 0}, "draws is 0"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"timestep_stride": 21}, "stride is 21"),
    ],
)
def test_what_cannot_be_measured_is_refused(trained, images, options, says):
    with pytest.raises(UsageError, match=says):
        bits_per_dim(trained, images, **options)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(None, "missing"), ([1], "1, but there are 2"), ([1, 10], "10"), ([1, "x"], "x")],
)
def test_labels_that_the_model_does_not_have_are_refused(by_class, labels, says):
    with pytest.raises(UsageError, match=says):
        bits_per_dim(by_class, np.zeros((2, 8, 8, 1), np.uint8), labels=labels)


def test_a_model_over_latents_has_no_likelihood_of_images():
    latents = load_trained(RUNS / "latents")
    with pytest.raises(UsageError, match="one of latents"):
        bits_per_dim(latents, np.zeros((2, 8, 8, 1), np.uint8))


@pytest.mark.full
def test_the_likelihood_of_any_network_is_that_of_its_closed_form():
    """Pixels N(0, 1) stay N(0, 1), and ε of x is then √(1-ᾱ) x: bits of N(0, 1) over the bins."""
    process = make_process(Chain(make_betas("cosine", 1000)), "eps", "fixed_large")
    noise = np.sqrt(1 - np.asarray(process.chain.at(dtype=np.float64).alphas_bar))

    def network(x_t, time):
        level = jnp.interp(time, jnp.arange(1000.0), jnp.asarray(noise, jnp.float32))
        return level[:, None, None, None] * x_t

    model = ddpm_jax.api.from_network(network, process, (4, 4, 1))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    found = model.bits_per_dim(images, "ode", trace="exact", draws=4)
    x = images / 127.5 - 1
    nats = 0.5 * (np.square(x) + np.log(2 * np.pi)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.values, nats / np.log(2) + np.log2(127.5), atol=2e-2)
    assert found.solved.all()
    assert np.all(found.num_evaluations > 0)


def test_settings_are_frozen_and_refuse_what_cannot_be():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VariationalBound().draws = 2
    with pytest.raises(UsageError, match="probes 2 has no part in trace exact"):
        FlowLikelihood(trace="exact", probes=2)
    with pytest.raises(UsageError, match="num_samples is 1"):
        SampleQuality(num_samples=1)
    assert FlowLikelihood(rtol=1e-3).record() == {"rtol": 1e-3}
