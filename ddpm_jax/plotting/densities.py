"""Pictures of data in the plane: densities, points, arrows and paths, in panels.

Arrays in, PNG out. What is drawn is computed in `diffusion` and `evaluation`; numbers over a
parameter are in `comparisons`. Matplotlib's object interface only.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import chex
import numpy as np

from ddpm_jax.plotting.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP_COLOURS = (
    "#1f4e79",
    "#c0504d",
    "#4f8f4f",
    "#8064a2",
    "#d08a2e",
    "#3b9ab2",
    "#7f7f7f",
    "#b04a8b",
)
_PANEL = 2.5  # inches of a side
_DPI = 110
_LEVELS = 12  # of the filled contours, from 0 to the density's maximum


class Plane(NamedTuple):
    """The content of one panel, drawn in the order of the fields; None for none."""

    title: str
    density: np.ndarray | None = None  # [G * G], at `grid_points(extent, G)`, not negative
    paths: np.ndarray | None = None  # [P, L, 2], each a line through L points
    points: np.ndarray | None = None  # [P, 2]
    groups: np.ndarray | None = None  # int [P], chooses the colour of a point or a path
    # feet [A, 2] and vectors [A, 2], drawn to a common scale
    arrows: tuple[np.ndarray, np.ndarray] | None = None


def grid_points(extent: float, size: int) -> np.ndarray:
    """Return a grid over [-extent, extent]², row by row from below: float32 [size * size, 2]."""
    axis = np.linspace(-extent, extent, size, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def planes(path: str | os.PathLike, rows: Sequence[Sequence[Plane]], *, extent: float) -> None:
    """Write a PNG of rows of square panels, each showing [-extent, extent]².

    Args:
      path: where to; parent folders are created.
      rows: panels from above; all rows have the same number of them.
      extent: half the side of the square shown, > 0.
    """
    columns = len(rows[0])
    if any(len(row) != columns for row in rows):
        raise ValueError(
            f"Rows of panels have the lengths {[len(row) for row in rows]}: they must agree."
        )
    figure = new_figure(_PANEL * columns, (_PANEL + 0.25) * len(rows), dpi=_DPI)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis, plane in zip(axes.ravel(), (plane for row in rows for plane in row), strict=True):
        _draw(axis, plane, extent)
    write_figure(path, figure, colours=256)


def _draw(axis: "Axes", plane: Plane, extent: float) -> None:
    if plane.density is not None:
        _draw_density(axis, np.asarray(plane.density), extent)
    if plane.paths is not None:
        chex.assert_shape(plane.paths, (None, None, 2))
        for curve, colour in zip(
            np.asarray(plane.paths), _colours(plane, len(plane.paths)), strict=True
        ):
            axis.plot(curve[:, 0], curve[:, 1], color=colour, linewidth=0.7, alpha=0.8)
    if plane.points is not None:
        chex.assert_shape(plane.points, (None, 2))
        x, y = np.asarray(plane.points).T
        axis.scatter(x, y, s=3, c=_colours(plane, len(x)), linewidths=0, alpha=0.8)
    if plane.arrows is not None:
        (x, y), (u, v) = (np.asarray(part).T for part in plane.arrows)
        axis.quiver(x, y, u, v, angles="xy", color="#7a1f1f", width=0.006, pivot="tail")
    axis.set_title(plane.title, fontsize=10)
    axis.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color("#bbbbbb")


def _draw_density(axis: "Axes", density: np.ndarray, extent: float) -> None:
    size = round(len(density) ** 0.5)
    chex.assert_shape(density, (size * size,))
    values = np.linspace(-extent, extent, size)
    levels = np.linspace(0, density.max(), _LEVELS + 1)
    axis.contourf(
        values, values, density.reshape(size, size), levels=levels, cmap="Blues", alpha=0.75
    )


def _colours(plane: Plane, count: int) -> list[str]:
    groups = np.zeros(count, int) if plane.groups is None else np.asarray(plane.groups)
    chex.assert_shape(groups, (count,))
    return [GROUP_COLOURS[group % len(GROUP_COLOURS)] for group in groups]
