"""Metric records -> pictures of curves, by matplotlib's object interface.

No display and no global state is used. The records are read from disk in `monitoring.records`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy

from ddpm_jax.plotting.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_LOSS_COLOUR = "#1f4e79"
_QUARTILE_COLOURS = ("#0b7a75", "#3a86c8", "#c8763a", "#8b1e3f")
# Ratio of the largest to the smallest value beyond which a linear axis hides the end of training.
_LOG_AXIS_FROM = 5.0


def columns(
    records: Sequence[Mapping[str, float]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pick metrics out of records, leaving out the records that hold none of them.

    Args:
      records: each has "step" and any metrics.
      names: the K wanted metrics.

    Returns:
      steps: float64 [n].
      values: float64 [n, K]; NaN where a record lacks the metric.
    """
    chosen = [record for record in records if any(name in record for name in names)]
    steps = np.array([record["step"] for record in chosen], np.float64)
    values = np.array(
        [[record.get(name, np.nan) for name in names] for record in chosen], np.float64
    )
    return steps, values.reshape(len(chosen), len(names))


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Return the centred, Gaussian-weighted running mean of the finite values.

    Args:
      values: [n]; values that are not finite have no weight.
      width: standard deviation of the weights, in elements of the array, > 0.

    Returns:
      [n], which does not lag behind a falling curve; NaN where no finite value is within three
      widths.
    """
    finite = np.isfinite(values)
    # Weighted sum over sum of weights, so that gaps and both ends count as missing, not as zero.
    total, weight = (
        scipy.ndimage.gaussian_filter1d(
            part.astype(np.float64), width, mode="constant", truncate=3.0
        )
        for part in (np.where(finite, values, 0.0), finite)
    )
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def loss_curve(
    path: str | os.PathLike,
    steps: np.ndarray,
    losses: np.ndarray,
    quartiles: np.ndarray | None = None,
    *,
    title: str = "",
    ylabel: str = "training loss",
) -> None:
    """Write a PNG of the loss over the steps and, if given, of the loss by quartile of t.

    Args:
      path: where to; parent folders are created.
      steps: [n] number of updates done, increasing; n may be 0.
      losses: [n]; drawn raw and light, and smoothed over about a fortieth of the run. Values that
        are not finite are left out.
      quartiles: [n, Q] loss of the examples whose t fell into each of Q equal parts of 0..T-1, NaN
        where none did.
      title: above the figure.
      ylabel: name of the loss.
    """
    steps, losses = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    panels = 1 if quartiles is None else 2
    figure = new_figure(6.4 * panels, 4.2, dpi=130)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if title:
        figure.suptitle(title, fontsize=12)
    _draw_loss(axes[0], steps, losses)
    axes[0].set_ylabel(ylabel)
    if quartiles is not None:
        _draw_quartiles(axes[1], steps, np.asarray(quartiles, np.float64))
        axes[1].set_ylabel(f"{ylabel} by part of t")
    write_figure(path, figure)


def _draw_loss(axis: "Axes", steps: np.ndarray, losses: np.ndarray) -> None:
    line(axis, steps, losses, color=_LOSS_COLOUR, alpha=0.3, linewidth=0.8, label="as logged")
    line(
        axis,
        steps,
        smooth(losses, _width(losses)),
        color=_LOSS_COLOUR,
        linewidth=1.8,
        label="smoothed",
    )
    finish(axis, losses)


def _draw_quartiles(axis: "Axes", steps: np.ndarray, quartiles: np.ndarray) -> None:
    count = quartiles.shape[1]
    smoothed = [smooth(losses, _width(losses)) for losses in quartiles.T]
    for i, (raw, mean) in enumerate(zip(quartiles.T, smoothed, strict=True)):
        colour = _QUARTILE_COLOURS[i % len(_QUARTILE_COLOURS)]
        line(axis, steps, raw, color=colour, alpha=0.18, linewidth=0.6)
        label = f"{i / count:.2f} ≤ t/T < {(i + 1) / count:.2f}"
        line(axis, steps, mean, color=colour, linewidth=1.8, label=label)
    finish(axis, quartiles)


def _width(losses: np.ndarray) -> float:
    return max(len(losses), 1) / 80


def line(axis: "Axes", steps: np.ndarray, values: np.ndarray, **style) -> "Line2D":
    """Draw the finite ones of values [n] over steps [n]."""
    finite = np.isfinite(values)
    marker = "o" if finite.sum() == 1 else None  # A line through one point is invisible.
    return axis.plot(steps[finite], values[finite], marker=marker, **style)[0]


def finish(axis: "Axes", values: np.ndarray, *, xlabel: str = "step") -> None:
    """Set scales, labels and legend of an axis; `values` is all that was drawn, of any shape."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = values[np.isfinite(values)]
    axis.set_xlabel(xlabel)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if values.size and values.min() > 0 and values.max() / values.min() > _LOG_AXIS_FROM:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", linewidth=0.5, color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)
    if values.size:
        axis.margins(x=0.01)
        if axis.get_legend_handles_labels()[1]:
            # Above the axes, where it never covers a line.
            axis.legend(
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=4,
                frameon=False,
                fontsize=8,
                columnspacing=1.2,
            )
    else:
        axis.set(xticks=[], yticks=[])
        axis.text(
            0.5, 0.5, "no finite values yet", transform=axis.transAxes, ha="center", color="#777777"
        )
