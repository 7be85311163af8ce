"""Several training runs in one picture: a panel per metric, a line per run. Arrays in, PNG out.

The picture of one run alone is `curves`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from ddpm_jax.plotting.curves import finish, line
from ddpm_jax.plotting.figures import new_figure, write_figure

_WIDTH, _HEIGHT = 5.6, 3.8  # inches of a panel
_COLUMNS = 3  # most panels in a row
_RAW_OPACITY = 0.3  # of the values as logged


class Curve(NamedTuple):
    """A metric of a run."""

    label: str  # of the run
    x: np.ndarray  # [n]
    y: np.ndarray  # [n]; points not finite in x or y are left out


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """s_i = Σ_j w^|i-j| v_j / Σ_j w^|i-j|, exponential smoothing on both sides.

      s_i = Σ_j w^|i-j| v_j / Σ_j w^|i-j|

    TensorBoard's smoothing uses j <= i only, so its line lies above a falling curve.

    Args:
      values: [n], finite.
      weight: w in [0, 1); 0 returns the values.

    Returns:
      [n].
    """

    def past(part: np.ndarray) -> np.ndarray:
        return scipy.signal.lfilter([1.0], [1.0, -weight], part)

    def both(part: np.ndarray) -> np.ndarray:
        return past(part) + past(part[::-1])[::-1] - part

    return both(values) / both(np.ones(len(values)))


def compare_runs(
    path: str | os.PathLike, panels: Mapping[str, Sequence[Curve]], *, xlabel: str, smoothing: float
) -> None:
    """Write a PNG of the panels; a run has the same colour in each.

    Parent folders are created.

    Args:
      path: of the PNG.
      panels: metric -> the curves of the runs that have it.
      xlabel: what x is.
      smoothing: the weight of `smooth`; unless it is 0, the logged values are drawn lightly behind.
    """
    import matplotlib

    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    colours = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20"].colors
    columns = 2 if len(panels) == 4 else min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(_WIDTH * columns, _HEIGHT * rows + 0.25 * len(labels), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    handles = {}
    for axis, (metric, curves) in zip(axes, panels.items(), strict=False):
        shown = []
        for label, x, y in curves:
            there = np.isfinite(x) & np.isfinite(y)
            x, y, colour = x[there], y[there], colours[labels.index(label) % len(colours)]
            smoothed = smooth(y, smoothing)
            if smoothing:
                line(axis, x, y, color=colour, alpha=_RAW_OPACITY, linewidth=0.7)
            handles[label] = line(axis, x, smoothed, color=colour, linewidth=1.6)
            shown += [y, smoothed]
        finish(axis, np.concatenate(shown), xlabel=xlabel)
        axis.set_title(metric, fontsize=11)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    # One below the other, since the labels of runs are long.
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower left",
        frameon=False,
        fontsize=9,
    )
    write_figure(path, figure, colours=256)
