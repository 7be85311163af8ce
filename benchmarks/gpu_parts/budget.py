"""The parts in their order, and how the time is shared out among them."""

from collections.abc import Sequence
from typing import NamedTuple

MINUTES = 8  # that the largest shares below are made for


class Part(NamedTuple):
    """A part and its share, in seconds."""

    name: str
    module: str
    least: float  # with less it is not begun
    most: float  # of `MINUTES`; grows with the time there is
    function: str = "measure"


PARTS = (
    Part("device", "device", 8, 30),
    Part("unet", "ours", 40, 90, "measure_unet"),
    Part("unet_pytorch", "pytorch", 40, 90, "measure_unet"),
    Part("dit", "ours", 25, 50, "measure_dit"),
    Part("dit_pytorch", "pytorch", 30, 60, "measure_dit"),
    Part("attention", "attention", 12, 25),
    Part("sampling", "sampling", 25, 50),
    Part("resume", "resume", 35, 60),
    Part("training", "training", 130, float("inf")),
)


def share(part: Part, later: Sequence[Part], left: float, *, minutes: float, small: bool) -> float:
    """Returns the seconds that a part may take: what those after it need at least is kept for them.

    Args:
      part: whose turn it is.
      later: those whose turn comes after it.
      left: seconds until the end.
      minutes: of the whole.
      small: toy sizes, which may take as long as there is time.

    Returns:
      0 where that is less than the part is begun with.
    """
    free = left - sum(other.least for other in later)
    seconds = free if small else min(part.most * minutes / MINUTES, free)
    return seconds if seconds >= part.least else 0.0
