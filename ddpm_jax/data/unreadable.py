"""The record of unreadable images that a source skips: counted, and logged as they are found."""

import logging
import threading
from collections.abc import Mapping

from ddpm_jax.errors import visible

REPORTED_SINGLY = 10  # logged one by one while reading; after that only powers of ten


class Unreadable:
    """The names of skipped images; several threads may add to it.

    Attributes:
      reasons: name -> why, in the order of discovery.
      quiet: whether additions are not logged.
    """

    def __init__(self, total: int, reasons: Mapping[str, str] | None = None):
        """Start with `reasons`, found and reported when the source of `total` images was opened."""
        self.reasons = dict(reasons or {})
        self.quiet = False
        self._total = total
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.reasons)

    def __contains__(self, name: str) -> bool:
        return name in self.reasons

    def add(self, name: str, reason: Exception) -> None:
        """Record that `name` cannot be read, and log it unless already known."""
        with self._lock:
            if name in self.reasons:
                return
            self.reasons[name] = str(reason)
            count = len(self.reasons)
        if not self.quiet and (count <= REPORTED_SINGLY or str(count).strip("0") == "1"):
            logging.getLogger(__name__).warning(
                "Skipped %s (%s): %d of %d images are unreadable so far.",
                visible(name),
                visible(str(reason)),
                count,
                self._total,
            )
