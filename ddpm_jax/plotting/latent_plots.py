"""Pictures of a latent space: how often codes are used, and the classes in a plane.

They are returned as arrays; `measuring.first_stage_pictures` computes the numbers and writes the
pictures. Matplotlib's object interface only.
"""

import numpy as np

from ddpm_jax.plotting.figures import new_figure, render

_COLOUR = "#1f4e79"
_DPI = 110
_CLASSES_NAMED = 20  # more names would fill the picture


def code_usage(counts: np.ndarray, *, title: str) -> np.ndarray:
    """Draw the share of each code, the most used first, and the line of uniform use.

    Args:
      counts: int [K], how often each code was chosen, not all 0.
      title: above the figure.

    Returns:
      uint8 [H, W, 3].
    """
    figure = new_figure(6.4, 3.6, dpi=_DPI)
    axis = figure.subplots()
    shares = np.sort(counts)[::-1] / np.sum(counts)
    axis.stairs(100 * shares, np.arange(len(counts) + 1), fill=True, color=_COLOUR)
    axis.axhline(
        100 / len(counts), color="black", linestyle=":", linewidth=1.0, label=f"1/{len(counts)}"
    )
    axis.set(
        xlim=(0, len(counts)),
        ylim=(0, None),
        xlabel="codes, the most used first",
        ylabel="share of all, %",
    )
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return render(figure)


def classes_in_plane(points: np.ndarray, labels: np.ndarray, *, title: str) -> np.ndarray:
    """Draw points in the colours of their classes, with circles of 39 % and 86 % of N(0, I).

    Args:
      points: [N, 2].
      labels: int [N]; if all are equal, no classes are named.
      title: above the figure.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib.patches import Circle

    figure = new_figure(5.6, 4.8, dpi=_DPI)
    axis = figure.subplots()
    for radius in (1, 2):
        axis.add_patch(Circle((0, 0), radius, fill=False, color="#bbbbbb", linewidth=0.8))
    found = np.unique(labels)
    for label in found:
        of_class = points[labels == label]
        colour = f"C{label % 10}" if len(found) > 1 else _COLOUR
        axis.scatter(*of_class.T, s=9, color=colour, linewidths=0, alpha=0.8, label=str(label))
    if 1 < len(found) <= _CLASSES_NAMED:
        axis.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, markerscale=1.6
        )
    axis.set(aspect="equal", xlabel="z 1", ylabel="z 2")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return render(figure)
