"""Compiled programs of one model, by the settings that they are made of."""

import json
from collections.abc import Callable
from typing import Any

_KEPT = 16  # programs kept, the most recently used


class Programs:
    """The compiled programs of a model, so that a second call of the same settings compiles none.

    They take weights as arguments and hold none: weights are freed when their model is.
    """

    def __init__(self) -> None:
        self._programs: dict[str, Callable[..., Any]] = {}

    def get(self, settings: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return the program of these settings, made by `make` if none is kept.

        Args:
          settings: all that decides the program, as JSON has it.
          make: returns the program, which is compiled for each shape of its arguments.
        """
        key = json.dumps(settings, sort_keys=True)
        program = self._programs.pop(key, None) or make()
        self._programs[key] = program
        for old in list(self._programs)[:-_KEPT]:
            del self._programs[old]
        return program
