"""Measured values with their errors, against predictions and known values. Arrays in, PNG out.

Pictures of the plane are `densities`, the curves of a training run `curves`. Matplotlib's object
interface only.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddpm_jax.plotting.densities import GROUP_COLOURS
from ddpm_jax.plotting.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 4.6, 3.4  # inches of a panel
_DPI = 110


class Series(NamedTuple):
    """Values over a parameter."""

    label: str
    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    error: np.ndarray | None = None  # [n], standard error; bars show two of them on either side
    group: int = 0  # chooses the colour: a measurement and its prediction share one
    predicted: bool = False  # a dashed line without marks


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    known: tuple[str, float] | None = None  # label and value of a known level
    xscale: str = "log"
    yscale: str = "linear"


def comparison(path: str | os.PathLike, panels: Sequence[Panel]) -> None:
    """Write a PNG of panels side by side; parent folders are created."""
    figure = new_figure(_WIDTH * len(panels), _HEIGHT, dpi=_DPI)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axis, panel)
    write_figure(path, figure, colours=256)


def _draw(axis: "Axes", panel: Panel) -> None:
    axis.set(xscale=panel.xscale, yscale=panel.yscale, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.set_title(panel.title, fontsize=10)
    if panel.known is not None:
        label, value = panel.known
        axis.axhline(value, color="black", linewidth=1.0, linestyle=":", label=label)
    for series in panel.series:
        colour = GROUP_COLOURS[series.group % len(GROUP_COLOURS)]
        if series.predicted:
            axis.plot(
                series.x, series.y, color=colour, linewidth=1.2, linestyle="--", label=series.label
            )
        else:
            error = None if series.error is None else 2 * np.asarray(series.error)
            style = {
                "color": colour,
                "linewidth": 1.2,
                "marker": "o",
                "markersize": 4,
                "capsize": 2,
            }
            axis.errorbar(series.x, series.y, yerr=error, label=series.label, **style)
    axis.grid(True, which="major", linewidth=0.5, color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
