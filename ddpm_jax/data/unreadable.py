"""What a source passes over as unreadable: remembered, counted, and told as it is found. Reads nothing itself."""

import logging
import threading
from collections.abc import Iterable

IN_FULL = 10  # of those found while reading, so many are told one by one, then every tenth power


class Unreadable:
    """The names of the images passed over, safe to add to from several threads.

    Attributes:
      names: in the order of discovery.
    """

    def __init__(self, total: int, names: Iterable[str] = ()):
        """Starts with `names`, found while the source of `total` images was opened, and told by whoever opened it."""
        self.names = list(names)
        self._known = set(self.names)
        self._total = total
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def add(self, name: str, reason: Exception) -> None:
        """Notes that `name` cannot be read, and tells so unless it was known."""
        with self._lock:
            if name in self._known:
                return
            self._known.add(name)
            self.names.append(name)
            count = len(self.names)
        if count <= IN_FULL or str(count).strip("0") == "1":
            logging.getLogger(__name__).warning(
                "Skipped %s (%s): %d of %d images are unreadable so far.", name, reason, count, self._total
            )
