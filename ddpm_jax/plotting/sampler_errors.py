"""Error against network evaluations, a line for each sampler. Arrays in, PNG out.

The errors are computed in `evaluation`.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.plotting.figures import new_figure, write_figure

_WIDTH, _HEIGHT = 4.6, 4.2  # inches of a panel
_MARKS = "osD^v<>P"
_DASHES = "-", "--"


class Measure(NamedTuple):
    """One pair of axes, both logarithmic."""

    title: str
    ylabel: str
    # sampler -> evaluations [n], error [n]; NaN is left out
    lines: dict[str, tuple[np.ndarray, np.ndarray]]
    # (what, error) of perfect samples; an error of 0 is drawn on it
    floor: tuple[str, float] | None = None


def error_against_evaluations(path: str | os.PathLike, measures: Sequence[Measure]) -> None:
    """Write a PNG of the measures side by side; a sampler has one colour in all.

    Parent folders are created.
    """
    import matplotlib

    names = list(dict.fromkeys(name for measure in measures for name in measure.lines))
    colours = matplotlib.colormaps["tab10"].colors
    budgets = sorted(
        {
            int(n)
            for measure in measures
            for evaluations, _ in measure.lines.values()
            for n in evaluations
        }
    )
    figure = new_figure(_WIDTH * len(measures) + 1.6, _HEIGHT, dpi=110)
    handles = {}
    for axis, measure in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True
    ):
        for name, (evaluations, error) in measure.lines.items():
            i = names.index(name)
            style = {"color": colours[i % len(colours)], "marker": _MARKS[i % len(_MARKS)]}
            style["linestyle"] = _DASHES[i // len(colours) % len(_DASHES)]
            shown = (
                error if measure.floor is None else np.where(error <= 0, measure.floor[1], error)
            )
            (handles[name],) = axis.plot(evaluations, shown, markersize=4, linewidth=1.2, **style)
        if measure.floor is not None:
            label, value = measure.floor
            axis.axhline(value, color="black", linewidth=1.0, linestyle=":")
            axis.annotate(
                label,
                (0.98, value),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                ha="right",
                va="bottom",
            )
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=measure.ylabel)
        axis.set_xticks([], minor=True)
        axis.set_xticks(_spaced(budgets), [str(n) for n in _spaced(budgets)])
        axis.set_title(measure.title, fontsize=10)
        axis.grid(True, which="major", linewidth=0.5, color="#dddddd")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    write_figure(path, figure, colours=256)


def _spaced(budgets: Sequence[int]) -> list[int]:
    """Return those of the increasing numbers whose labels fit on a logarithmic axis."""
    kept: list[int] = []
    for n in reversed(budgets):
        if not kept or n < 0.8 * kept[0]:
            kept.insert(0, n)
    return kept
