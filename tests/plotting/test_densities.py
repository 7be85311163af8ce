"""Panels of the plane and comparisons: pictures of the documented layout show their data."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting.comparisons import Panel, Series, comparison
from ddpm_jax.plotting.densities import Plane, grid_points, planes

rng = np.random.default_rng(0)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


def test_the_grid_runs_along_x_first_and_upwards():
    grid = grid_points(2.0, 3)
    np.testing.assert_array_equal(grid[:4], [[-2, -2], [0, -2], [2, -2], [-2, 0]])
    assert grid.shape == (9, 2)
    assert grid.dtype == np.float32


def test_a_density_is_darkest_where_it_is_largest(tmp_path):
    grid = grid_points(1.0, 41)
    density = np.exp(-20 * np.sum((grid - [0.5, 0.5]) ** 2, axis=1))  # above and to the right
    planes(tmp_path / "density.png", [[Plane("", density=density)]], extent=1.0)
    image = pixels(tmp_path / "density.png").sum(axis=-1)
    top, bottom = np.array_split(image, 2)
    assert (
        np.array_split(top, 2, axis=1)[1].mean() < np.array_split(bottom, 2, axis=1)[0].mean() - 20
    )


def test_every_kind_of_mark_is_drawn(tmp_path):
    points, groups = rng.normal(size=(20, 2)), np.arange(20)
    empty = Plane("")
    marks = {
        "points": empty._replace(points=points, groups=groups),
        "paths": empty._replace(paths=rng.normal(size=(20, 5, 2)), groups=groups),
        "arrows": empty._replace(arrows=(points, -points)),
    }
    planes(tmp_path / "empty.png", [[empty]], extent=2.0)
    for name, plane in marks.items():
        planes(tmp_path / f"{name}.png", [[plane]], extent=2.0)
        assert np.any(pixels(tmp_path / f"{name}.png") != pixels(tmp_path / "empty.png"))


def test_rows_are_stacked_and_must_agree(tmp_path):
    plane = Plane("", points=rng.normal(size=(5, 2)))
    for rows, columns in ((1, 3), (2, 2)):
        planes(tmp_path / "rows.png", [[plane] * columns] * rows, extent=2.0)
        height, width, _ = pixels(tmp_path / "rows.png").shape
        assert width / height == pytest.approx(columns * 2.5 / (rows * 2.75), rel=0.02)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        planes(tmp_path / "no.png", [[plane], [plane, plane]], extent=2.0)


@pytest.mark.full
def test_a_comparison_shows_values_errors_predictions_and_what_is_known(tmp_path):
    x, y = np.array([10, 100]), np.array([1.0, 0.1])
    series = (
        [Series("measured", x, y)],
        [Series("measured", x, y, 0.05 * y), Series("theory", x, y / 2, None, 1, True)],
    )
    images = []
    for number, lines in enumerate(series):
        panel = Panel("title", "steps", "bits", lines, known=("truth", 0.05), yscale="log")
        comparison(tmp_path / f"{number}.png", [panel, panel])
        images.append(pixels(tmp_path / f"{number}.png"))
    assert images[0].shape == images[1].shape
    assert np.any(images[0] != images[1])
