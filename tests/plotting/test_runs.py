"""Runs side by side: the smoothing as a direct sum, and that any curves can be drawn."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting.runs import Curve, compare_runs, smooth


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_smoothing_is_its_weighted_sum(weight, count):
    values = np.random.default_rng(0).normal(size=count)
    i = np.arange(count)
    weights = np.float64(weight) ** np.abs(i[:, None] - i[None, :])
    # Sums of at most fifty float64 terms.
    np.testing.assert_allclose(
        smooth(values, weight), weights @ values / weights.sum(axis=1), rtol=1e-12, atol=1e-13
    )


def test_smoothing_does_not_lag_behind_a_falling_line():
    line = np.linspace(5.0, 1.0, 201)
    np.testing.assert_allclose(smooth(line, 0.8)[90:110], line[90:110], rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("points", [1, 30])
def test_any_number_of_panels_and_points_is_a_picture(tmp_path, count, points):
    curves = [Curve(name, np.arange(points), 1.0 + np.arange(points)) for name in ("one", "two")]
    panels = {f"metric {i}": curves[: 1 + i % 2] for i in range(count)}
    compare_runs(tmp_path / "out" / "runs.png", panels, xlabel="step", smoothing=0.5)
    with Image.open(tmp_path / "out" / "runs.png") as picture:
        columns = {1: 1, 2: 2, 4: 2, 5: 3}[count]
        assert picture.width == round(5.6 * 110) * columns
        assert np.asarray(picture.convert("L")).std() > 1


def test_what_is_not_finite_is_left_out_and_a_run_keeps_its_colour(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "ddpm_jax.plotting.runs.line",
        lambda axis, x, y, **style: drawn.append((x, style)) or axis.plot([0])[0],
    )
    x, y = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, np.nan, 3.0, 4.0])
    panels = {"loss": [Curve("a", x, x), Curve("b", x, y)], "fid": [Curve("b", x, y)]}
    compare_runs(tmp_path / "runs.png", panels, xlabel="step", smoothing=0.0)
    (_, a), (b_x, b), (_, b_again) = drawn
    np.testing.assert_array_equal(b_x, [1, 3])
    assert b["color"] == b_again["color"] != a["color"]
