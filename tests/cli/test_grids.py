"""What training does at a grid: the picture, its colours in the records, and the warning."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.evaluation.colour import colours, moments
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.monitoring.records import read
from ddpm_jax.plotting.grids import grid
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling
from ddpm_jax.training_runs.sample_grids import REFERENCE, compare_colours, reference_colours

KINDS = ("sample_mean", "sample_std", "data_mean", "data_std")


def _source(images, labels=None, num_classes=0):
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    return ArraySource(images, labels, num_classes, "made up")


def test_a_grid_records_its_colours_beside_those_of_the_data(trained):
    records = read(trained)
    assert [record["step"] for record in records if "colour_shift" in record] == [10]
    config = load_trained(trained).model.config
    images = load_split(config.data, "train")
    pixels = np.stack([images[i]["image"] for i in range(len(images))])
    assert len(images) < REFERENCE
    assert records[-1]["data_mean_grey"] == pytest.approx(pixels.mean(), rel=1e-12)
    assert records[-1]["data_std_grey"] == pytest.approx(pixels.std(), rel=1e-12)
    with Image.open(trained / "samples" / "step_00000010.png") as image:
        shown = np.asarray(image.convert("L"))
    cells = np.stack(
        [shown[2 + 66 * r : 66 + 66 * r, 2 + 66 * c : 66 + 66 * c] for r in (0, 1) for c in (0, 1)]
    )
    assert records[-1]["sample_mean_grey"] == pytest.approx(cells.mean(), rel=1e-12)
    assert records[-1]["sample_std_grey"] == pytest.approx(cells.std(), rel=1e-12)


@pytest.mark.full
def test_the_raw_weights_are_drawn_beside_the_average_from_the_same_noise(
    invoke, copied, config_file
):
    overrides = ["--config.train.raw_grid=true", "--config.train.num_steps=11"]
    assert invoke("train", "--config", config_file(), "--workdir", copied, *overrides).code == 0
    with Image.open(copied / "samples" / "step_00000011.png") as image:
        picture = np.asarray(image.convert("L"))
    side = 2 * 64 + 3 * 2
    assert picture.shape == (side + 22, 2 * side + 16)
    averaged, raw = picture[22:, :side], picture[22:, -side:]
    for half, raw_weights in ((averaged, False), (raw, True)):
        loaded = load_trained(copied, raw_weights=raw_weights)
        generator = make_generator(loaded, Sampling(steps=20))
        seed = loaded.model.config.seed
        ((_, images),) = generator.batches(np.arange(4), seed=seed, batch_size=4)
        np.testing.assert_array_equal(half, grid(images)[..., 0])
    assert np.any(averaged != raw)


def test_the_reference_is_of_every_image_where_there_are_few():
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), np.uint8)
    found = reference_colours(_source(images), None)
    np.testing.assert_allclose(found.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert found.count == pytest.approx(300)


def test_of_many_images_the_reference_takes_evenly_spaced_ones():
    images = np.arange(5000 * 2, dtype=np.int64).reshape(5000, 2, 1, 1) // 2 % 251
    found = reference_colours(_source(images.astype(np.uint8)), None)
    assert found.count == pytest.approx(REFERENCE)
    assert found.mean[0] == pytest.approx(images.mean(), abs=0.5)


def test_the_reference_has_the_classes_of_the_samples():
    labels = np.arange(400, dtype=np.int32) % 4
    images = np.broadcast_to(np.uint8(40 * labels)[:, None, None, None], (400, 2, 2, 1))
    of = np.array([1, 1, 1, 3], np.int32)
    found = reference_colours(_source(images, labels, 4), of)
    assert found.mean[0] == pytest.approx((3 * 40 + 120) / 4)
    # Three quarters of the weight on a quarter of the images, a quarter on another: n = 1 / (9 + 1)
    # * 16 * 100.
    assert found.count == pytest.approx(160)


def test_samples_like_the_data_pass_and_tinted_ones_are_named_in_one_line():
    rng = np.random.default_rng(0)
    images = np.clip(
        rng.normal(120, 40, (600, 1, 1, 3)) + rng.normal(0, 20, (600, 4, 4, 3)), 0, 255
    ).astype(np.uint8)
    data, samples = colours(moments(images[:500])), images[500:]
    record, warning = compare_colours(colours(moments(samples)), data)
    assert warning is None
    assert record["colour_shift"] <= 4
    channels = {f"{kind}_{name}" for kind in KINDS for name in ("red", "green", "blue")}
    assert set(record) == channels | {"colour_shift"}
    tinted = samples.copy()
    tinted[..., 2] = np.minimum(samples[..., 2].astype(int) + 30, 255)
    record, warning = compare_colours(colours(moments(tinted)), data)
    assert record["colour_shift"] > 4
    assert "mean of blue is 1" in warning
    assert "standard errors of 100 images apart." in warning
    assert "\n" not in warning
