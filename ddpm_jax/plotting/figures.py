"""Figures of matplotlib: made without a display, written atomically, with no text cut off."""

import io
import os
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ddpm_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_MARGIN = 6  # pixels kept free on either side of a title


def new_figure(width: float, height: float, *, dpi: int) -> "Figure":
    """Return a figure of a size in inches that lays out its axes and legends itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(path: str | os.PathLike, figure: "Figure", *, colours: int | None = None) -> None:
    """Write a PNG, whole or not at all, creating parent folders.

    Args:
      path: of the PNG.
      figure: from `new_figure`; titles that are too wide are broken into lines.
      colours: size of a palette, None for true colour; 256 take a third of its file size.
    """
    drawn, packed = io.BytesIO(), io.BytesIO()
    fit_titles(figure)
    figure.savefig(drawn, format="png")
    if colours is None:
        write_atomically(path, drawn.getvalue())
        return
    picture = Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    picture.save(packed, format="PNG", optimize=True)
    write_atomically(path, packed.getvalue())


def render(figure: "Figure") -> np.ndarray:
    """Return the figure as uint8 [H, W, 3], titles that are too wide broken into lines."""
    fit_titles(figure)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _take_as_written(figure: "Figure") -> None:
    """Draw a $ in a label as a $, not as the start of a formula.

    Names of runs, classes and directories may hold one, and an invalid formula is an error.
    """
    from matplotlib.text import Text

    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    # Matplotlib writes powers of ten on ticks as formulas.
    ticks = {
        id(text)
        for axis in axes
        for text in (*axis.get_ticklabels(which="both"), axis.get_offset_text())
    }
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def fit_titles(figure: "Figure") -> None:
    """Break titles, and labels of the figure's own legends, that are too wide into lines."""
    _take_as_written(figure)
    figure.draw_without_rendering()  # lays out the axes, whose positions are needed below
    renderer = figure.canvas.get_renderer()
    for text, room in list(_title_widths(figure)):
        whole = text.get_text()
        letters = len(whole)
        # Letters differ in width, so a guess from their mean may be one or two letters too long.
        while letters > 1 and text.get_window_extent(renderer).width > room:
            letters = min(
                letters - 1, int(len(whole) * room / max(text.get_window_extent(renderer).width, 1))
            )
            letters = max(letters, 1)
            text.set_text(textwrap.fill(whole, letters, break_on_hyphens=False))


def _title_widths(figure: "Figure") -> Iterator[tuple["Text", float]]:
    """Yield every title and legend label with its available width in pixels."""
    width = figure.bbox.width
    if figure.get_suptitle():
        yield figure._suptitle, width - 2 * _MARGIN
    for axis in figure.axes:
        place = axis.get_subplotspec()
        columns = place.get_gridspec().ncols
        left, right = place.colspan.start * width / columns, place.colspan.stop * width / columns
        centre = axis.get_window_extent().x0 + axis.get_window_extent().width / 2
        yield axis.title, 2 * (min(centre - left, right - centre) - _MARGIN)
    for legend in figure.legends:
        for text in legend.get_texts():
            around = legend.get_window_extent().width - text.get_window_extent().width
            yield text, width - around - 2 * _MARGIN
