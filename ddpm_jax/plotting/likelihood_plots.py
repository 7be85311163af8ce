"""Pictures of likelihoods: the bound over t, rate-distortion, bits of each image.

Arrays in, PNG out. The numbers are computed in `evaluation`; curves of training are in `curves`.
Matplotlib's object interface only.
"""

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.plotting.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR = "#1f4e79"
_WIDTH, _HEIGHT = 5.2, 4.0  # inches of a panel


def bound_terms(
    path: str | os.PathLike,
    t: np.ndarray,
    bits: np.ndarray,
    standard_error: np.ndarray,
    rmse: np.ndarray,
    title: str = "",
) -> None:
    """Write a PNG of the bits/dim at each t and of the error of the predicted x_0.

    Args:
      path: where to; parent folders are created.
      t: int [K], increasing.
      bits: [K], bits/dim of the term at t.
      standard_error: [K], of `bits`; NaN for none. The band shows two on either side.
      rmse: [K], of the x_0 predicted at t, in grey levels of 0..255.
      title: above the figure.
    """
    figure, (left, right) = _panels(2, title)
    # A logarithmic axis of t + 1 has room for the decoder's term at t = 0.
    _line(left, t + 1, bits)
    below, above = np.maximum(bits - 2 * standard_error, 0.3 * bits), bits + 2 * standard_error
    left.fill_between(t + 1, below, above, color=_COLOUR, alpha=0.2, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="t + 1", ylabel="bits per dimension at t")
    _line(right, t, rmse)
    right.set(xlabel="t", ylabel="RMSE of the predicted x_0 (0..255)")
    write_figure(path, figure)


def rate_distortion(
    path: str | os.PathLike, t: np.ndarray, rate: np.ndarray, rmse: np.ndarray, title: str = ""
) -> None:
    """Write a PNG of distortion and rate over steps, and distortion over rate.

    As figure 5 of Ho et al. (2020).

    Args:
      path: where to; parent folders are created.
      t: int [K], decreasing, as the bits are sent.
      rate: [K], bits/dim received by x_t.
      rmse: [K], of the x_0 predicted from x_t, in grey levels of 0..255.
      title: above the figure.
    """
    figure, (over_t, rate_over_t, over_rate) = _panels(3, title)
    steps = t[0] - t
    _line(over_t, steps, rmse)
    over_t.set(xlabel="reverse steps", ylabel="distortion (RMSE on 0..255)", ylim=(0, None))
    _line(rate_over_t, steps, rate)
    rate_over_t.set(xlabel="reverse steps", ylabel="rate (bits per dimension)", ylim=(0, None))
    _line(over_rate, rate, rmse)
    over_rate.set(
        xlabel="rate (bits per dimension)", ylabel="distortion (RMSE on 0..255)", ylim=(0, None)
    )
    write_figure(path, figure)


def bits_per_image(path: str | os.PathLike, bits: np.ndarray, title: str = "") -> None:
    """Write a PNG of the histogram of the images' bits/dim, with a line at their mean.

    Args:
      path: where to; parent folders are created.
      bits: [N], bits/dim of each image, finite.
      title: above the figure.
    """
    figure, (panel,) = _panels(1, title)
    panel.hist(bits, bins=min(60, max(5, math.isqrt(len(bits)))), color=_COLOUR)
    panel.axvline(
        bits.mean(), color="black", linewidth=1, linestyle="--", label=f"mean {bits.mean():.3f}"
    )
    panel.set(xlabel="bits per dimension of an image", ylabel="images")
    panel.legend(frameon=True, edgecolor="none")  # legible over the bars
    write_figure(path, figure)


def _panels(count: int, title: str) -> tuple["Figure", np.ndarray]:
    figure = new_figure(_WIDTH * count, _HEIGHT, dpi=130)
    if title:
        figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.grid(True, which="major", linewidth=0.5, color="#dddddd")
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _line(axis: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    axis.plot(x, y, color=_COLOUR, linewidth=1.6, marker="o" if len(x) < 60 else None, markersize=3)
