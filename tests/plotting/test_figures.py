"""No text of a figure is cut at its edge, whatever the titles say."""

import ast
import inspect
import pathlib
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ddpm_jax.plotting import (
    comparisons,
    curves,
    densities,
    figures,
    latent_plots,
    likelihood_plots,
    runs,
    sampler_errors,
)

LONG = (
    r"$\frac{$ of "
    + "Probability flow: 3.123 bits/dim (10,000 images of validation given the class, 16 "
    "rademacher probes, 4 draws)"
)
WORD = "/home/somebody/experiments/" + "a_long_name_of_a_run_" * 5  # without a space to break at
X = np.arange(1.0, 9.0)
CALLS = {
    "loss_curve": lambda path, title: curves.loss_curve(
        path, X, X, np.stack([X] * 4, axis=1), title=title
    ),
    "bound_terms": lambda path, title: likelihood_plots.bound_terms(path, X, X, 0.1 * X, X, title),
    "rate_distortion": lambda path, title: likelihood_plots.rate_distortion(
        path, X[::-1], X, X[::-1], title
    ),
    "bits_per_image": lambda path, title: likelihood_plots.bits_per_image(path, X, title),
    "compare_runs": lambda path, title: runs.compare_runs(
        path,
        {title: [runs.Curve(title, X, X)], "loss": [runs.Curve("b", X, X)]},
        xlabel="step",
        smoothing=0.5,
    ),
    "error_against_evaluations": lambda path, title: sampler_errors.error_against_evaluations(
        path,
        [
            sampler_errors.Measure(title, "RMSE", {"ddim": (X, X)}),
            sampler_errors.Measure(title, "RMSE", {"lms": (X, X)}),
        ],
    ),
    "comparison": lambda path, title: comparisons.comparison(
        path, [comparisons.Panel(title, "x", "y", [comparisons.Series("a", X, X)])] * 2
    ),
    "planes": lambda path, title: densities.planes(
        path, [[densities.Plane(title, points=np.ones((3, 2)))] * 3] * 2, extent=2.0
    ),
    "code_usage": lambda path, title: latent_plots.code_usage(np.arange(1, 9), title=title),
    "classes_in_plane": lambda path, title: latent_plots.classes_in_plane(
        np.ones((4, 2)), np.arange(4), title=title
    ),
}
MODULES = (comparisons, curves, densities, latent_plots, likelihood_plots, runs, sampler_errors)


def _draws(function: types.FunctionType) -> bool:
    names = {
        node.id
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Name)
    }
    return bool(names & {"new_figure", "_panels"})


def _texts(figure: Figure) -> list[Text]:
    """All but the numbers at the axes, of which some lie out of view."""
    found = [figure._suptitle] if figure.get_suptitle() else []
    for axis in figure.axes:
        found += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        found += axis.get_legend().get_texts() if axis.get_legend() else []
    return found + [text for legend in figure.legends for text in legend.get_texts()]


def test_every_function_that_makes_a_figure_is_tried():
    found = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_") and _draws(function)
    }
    assert found == set(CALLS)
    for path in pathlib.Path(figures.__file__).parent.glob("*.py"):
        assert path.name == "figures.py" or "Figure(" not in path.read_text(), (
            "figures are made in one place"
        )


@pytest.mark.full
@pytest.mark.parametrize(
    "title", [LONG, pytest.param(WORD, marks=pytest.mark.slow)], ids=["long", "word"]
)
@pytest.mark.parametrize("name", CALLS)
def test_no_text_leaves_its_figure_and_no_title_its_place(monkeypatch, tmp_path, name, title):
    made, init = [], Figure.__init__

    def remembering(self, *args, **options):
        init(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(Figure, "__init__", remembering)
    CALLS[name](tmp_path / "a.png", title)
    (figure,) = made
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    texts = [text for text in _texts(figure) if text.get_text()]
    assert any("".join(title.split()) == "".join(text.get_text().split()) for text in texts), (
        "nothing is left out"
    )
    for text in texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= figure.bbox.height + 1, text
    titles = [axis.title.get_window_extent(renderer) for axis in figure.axes if axis.get_title()]
    for i, one in enumerate(titles):
        assert not any(one.overlaps(other) for other in titles[:i]), (
            "titles side by side keep apart"
        )


def test_a_short_title_stays_on_its_line():
    figure = figures.new_figure(4, 3, dpi=100)
    figure.subplots().set_title("three short words")
    figures.fit_titles(figure)
    assert figure.axes[0].get_title() == "three short words"
