"""Curves: which records are drawn, how they are smoothed, and that any run can be drawn."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting import curves


def test_columns_keep_records_that_hold_a_wanted_metric_and_mark_gaps():
    records = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "fid": 3.0},
        {"step": 3, "loss": 0.4, "loss_q1": 0.9},
    ]
    steps, values = curves.columns(records, ["loss", "loss_q1"])
    np.testing.assert_array_equal(steps, [1, 3])
    np.testing.assert_array_equal(values, [[0.5, np.nan], [0.4, 0.9]])


def test_columns_of_no_records_are_empty():
    steps, values = curves.columns([], ["loss", "loss_q1"])
    assert steps.shape == (0,)
    assert values.shape == (0, 2)


def test_smoothing_is_the_weighted_mean_of_the_finite_neighbours():
    values = np.array([3.0, np.nan, 5.0, 1.0, np.inf, 2.0, 8.0])
    smoothed = curves.smooth(values, 1.0)
    for i in range(len(values)):
        near = [j for j in range(len(values)) if abs(i - j) <= 3 and np.isfinite(values[j])]
        weights = np.array([np.exp(-0.5 * (i - j) ** 2) for j in near])
        # Sums of at most seven float64 terms.
        np.testing.assert_allclose(smoothed[i], weights @ values[near] / weights.sum(), rtol=1e-14)


def test_smoothing_neither_lags_nor_bends_a_straight_line():
    line = np.linspace(4.0, 1.0, 101)
    np.testing.assert_allclose(curves.smooth(line, 5.0)[20:-20], line[20:-20], rtol=1e-12)


def test_smoothing_far_from_any_finite_value_is_nan():
    assert np.isnan(curves.smooth(np.array([1.0] + [np.nan] * 9), 1.0)[-1])


@pytest.mark.parametrize("count", [0, 1, 2, 300])
@pytest.mark.parametrize("with_quartiles", [False, True])
def test_a_run_of_any_length_gives_a_picture(tmp_path, count, with_quartiles):
    steps = 10 * np.arange(count)
    losses = 1.0 / (1.0 + steps)
    quartiles = (
        np.stack([losses, losses, losses, np.full(count, np.nan)], axis=1)
        if with_quartiles
        else None
    )
    curves.loss_curve(tmp_path / "out" / "loss.png", steps, losses, quartiles, title="digits")
    with Image.open(tmp_path / "out" / "loss.png") as picture:
        assert picture.width == (2 if with_quartiles else 1) * 832
        assert np.asarray(picture.convert("L")).std() > 1  # Something is drawn.


def test_what_is_not_finite_in_a_diverged_loss_is_left_out(tmp_path):
    def picture(losses):
        curves.loss_curve(tmp_path / "loss.png", np.arange(len(losses)), losses)
        with Image.open(tmp_path / "loss.png") as image:
            return np.asarray(image)

    np.testing.assert_array_equal(picture([0.5, 0.4, np.nan, np.inf]), picture([0.5, 0.4]))
    np.testing.assert_array_equal(picture([np.nan, np.nan]), picture([]))


def test_pyplot_and_displays_stay_out_of_it(tmp_path):
    program = (
        "import sys; from ddpm_jax.plotting import curves;"
        f"curves.loss_curve({str(tmp_path / 'loss.png')!r}, [1, 2], [0.5, 0.4]);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'tkinter' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
