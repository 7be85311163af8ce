"""What a source passes over as unreadable: remembered, counted, and told as it is found. Reads
nothing itself."""

import logging
import threading
from collections.abc import Mapping

from ddpm_jax.errors import visible

REPORTED_SINGLY = (
    10  # of those found while reading, so many are told one by one, then every tenth power
)


class Unreadable:
    """The names of the images passed over, safe to add to from several threads.

    Attributes:
      reasons: name -> why, in the order of discovery.
      quiet: whether what is added is not told.
    """

    def __init__(self, total: int, reasons: Mapping[str, str] | None = None):
        """Start with `reasons`, found while the source of `total` images was opened, and told by
        whoever opened it."""
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
        """Note that `name` cannot be read, and tells so unless it was known."""
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
