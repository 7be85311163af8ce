"""The certificate of a distilled model as a picture. Arrays in, PNG out."""

import os
from collections.abc import Mapping

import numpy as np

from ddpm_jax.plotting.figures import new_figure, write_figure

# name -> x [n], y [n]
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
_COLOURS = ("#8b1e3f", "#1f4e79", "#777777")


def distilled_model(path: str | os.PathLike, by_level: Lines, by_steps: Lines) -> None:
    """Write a PNG of errors by noise level and of sample quality by network evaluations.

    Args:
      path: where to; parent folders are created.
      by_level: distances to the end of the teacher's flow against σ.
      by_steps: Frechet distances against evaluations.
    """
    figure = new_figure(9.2, 4.0, dpi=110)
    panels = (
        (
            by_level,
            "from a noisy image",
            "noise level σ",
            "distance to the end of the teacher's flow",
        ),
        (by_steps, "samples", "network evaluations", "Frechet distance of pixels"),
    )
    for axis, (lines, title, xlabel, ylabel) in zip(figure.subplots(1, 2), panels, strict=True):
        for colour, (name, (x, y)) in zip(_COLOURS, lines.items(), strict=False):
            axis.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
        axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        axis.set_title(title, fontsize=10)
        axis.grid(True, which="major", linewidth=0.5, color="#dddddd")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
        # those measured: the labels of a logarithmic axis overlap where they are near each other
        ticks = sorted({float(n) for x, _ in lines.values() for n in x})
        axis.set_xticks([], minor=True)
        axis.set_xticks(ticks, [f"{n:.2g}" for n in ticks])
    write_figure(path, figure, colours=256)
