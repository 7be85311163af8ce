"""Pictures of likelihoods: positions follow the numbers, and the smallest input can be drawn."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.plotting import likelihood_plots


@pytest.fixture
def axes(monkeypatch):
    """Draw with `draw(path, ...)` and returns the axes of the figure that was written."""
    write, figures = likelihood_plots.write_figure, []

    def keep(path, figure):
        figures.append(figure)
        write(path, figure)

    monkeypatch.setattr(likelihood_plots, "write_figure", keep)

    def axes(draw, path, *args, **kwargs):
        draw(path, *args, **kwargs)
        with Image.open(path) as picture:
            assert picture.width == round(130 * likelihood_plots._WIDTH) * len(figures[-1].axes)
            assert np.asarray(picture.convert("L")).std() > 1  # something is drawn
        return figures[-1].axes

    return axes


def line(axis):
    return [part.tolist() for part in axis.lines[0].get_data()]


def test_the_terms_of_the_bound_stand_over_t_plus_one_within_two_errors(axes, tmp_path):
    t, bits, rmse = np.array([0, 3, 9]), np.array([1.5, 0.2, 0.01]), np.array([2.0, 9.0, 40.0])
    error = np.array([0.1, 0.01, np.nan])
    left, right = axes(
        likelihood_plots.bound_terms,
        tmp_path / "out" / "a.png",
        t,
        bits,
        error,
        rmse,
        title="digits",
    )
    assert line(left) == [[1, 4, 10], bits.tolist()]
    assert line(right) == [t.tolist(), rmse.tolist()]
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    band = left.collections[0].get_paths()[0].vertices
    for height in (1.3, 1.7, 0.18, 0.22):
        assert np.isclose(band[:, 1], height).any()


def test_rate_and_distortion_stand_over_the_steps_taken(axes, tmp_path):
    t, rate, rmse = np.array([9, 4, 0]), np.array([0.0, 0.5, 2.0]), np.array([60.0, 20.0, 1.0])
    over_t, rate_over_t, over_rate = axes(
        likelihood_plots.rate_distortion, tmp_path / "a.png", t, rate, rmse
    )
    assert line(over_t) == [[0, 5, 9], rmse.tolist()]
    assert line(rate_over_t) == [[0, 5, 9], rate.tolist()]
    assert line(over_rate) == [rate.tolist(), rmse.tolist()]


@pytest.mark.parametrize("count", [1, 2, 7, 10_000])
def test_every_image_is_counted_once_and_the_mean_is_marked(axes, tmp_path, count):
    bits = np.random.default_rng(0).normal(5, 1, count)
    (panel,) = axes(likelihood_plots.bits_per_image, tmp_path / "a.png", bits, title="digits")
    assert sum(bar.get_height() for bar in panel.patches) == count
    assert panel.lines[0].get_xdata()[0] == pytest.approx(bits.mean())
    assert panel.get_legend().get_texts()[0].get_text() == f"mean {bits.mean():.3f}"
