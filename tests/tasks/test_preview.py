"""What training's sample grid shows of a conditional model, and data whose labels do not fit the
model."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import check_classes, load_split
from ddpm_jax.training_runs.preview import make_preview

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def run_preview(name, data_dir, count):
    overrides = {"train.num_samples": str(count), "data.data_dir": str(data_dir)}
    return make_preview(
        build(configs.override(configs.load_config(CONFIGS / f"{name}.py"), overrides))
    )


def test_every_row_is_a_class(data_dir):
    preview = run_preview("digits_cond", data_dir, 30)
    assert preview.columns == 3
    np.testing.assert_array_equal(
        preview.condition.label.reshape(10, 3), np.arange(10)[:, None].repeat(3, axis=1)
    )
    np.testing.assert_array_equal(
        run_preview("digits_cond", data_dir, 4).condition.label, np.arange(4)
    )
    assert run_preview("digits", data_dir, 4).condition is None


def test_what_is_enlarged_are_the_held_out_images_beside_their_originals(data_dir):
    preview = run_preview("digits_sr", data_dir, 3)
    source = load_split(configs.load_config(CONFIGS / "digits.py").data, "test", data_dir=data_dir)
    np.testing.assert_array_equal(preview.originals, source.gather(np.arange(3))["image"])
    assert preview.condition.low_res.shape == (3, 8, 8, 1)
    picture = preview.draw(np.full((3, 8, 8, 1), 7, np.uint8))
    assert picture[:22].min() < 128, "each of the three has its name"
    assert np.all(picture[24:88, 68:132] == 7)  # the middle of the first three
    np.testing.assert_array_equal(picture[24:88:8, 134:198:8], preview.originals[0])


@pytest.mark.parametrize(
    ("classes", "words"), [(0, "has no labels, but .* is 10"), (7, "has 7 classes, but .* is 10")]
)
def test_data_of_other_classes_are_refused(classes, words):
    source = ArraySource(
        np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32), classes, "made up"
    )
    with pytest.raises(UsageError, match=words):
        check_classes(source, configs.load_config(CONFIGS / "digits_cond.py"), split="train")
    check_classes(source, configs.load_config(CONFIGS / "digits.py"), split="train")
