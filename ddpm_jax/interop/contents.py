"""Tensors and plain values in nested containers, by the keys that lead to them."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.archives import BadArchive
from ddpm_jax.interop.tensor_store import Entry, Stored, TensorStore, store_of
from ddpm_jax.interop.torch_files import Saved
from ddpm_jax.interop.torch_names import Inert, Name, Record, Span, Storage, View

ENTRIES = 2_000_000  # tensors and values in a file, as often as it refers to them
LONGEST = 1000  # characters of the keys that lead to a tensor or value, together
LETTERS = 1 << 27  # of all of them
DEEPEST = 32  # containers within each other
_OPTIMISER = {"state", "param_groups"}  # keys of its state in PyTorch


class Contents(NamedTuple):
    """What a file or a directory holds: the fields of `containers.Container`."""

    groups: Mapping[str, TensorStore]
    facts: Mapping[str, Any] = {}
    unread: Mapping[str, str] = {}


def contents_of_pickle(path: pathlib.Path, saved: Saved) -> Contents:
    """Sort what a local file of PyTorch holds into groups of tensors and plain values.

    Raises:
      BadArchive: as `sort_tree`.
    """
    return sort_tree(saved.tree, View, lambda view: Stored(path, *saved.place(view)))


def sort_tree(
    tree: Any,
    kind: type | tuple[type, ...],
    entry: Callable[[Any], Entry],
    separator: str = ".",
) -> Contents:
    """Sort what is in nested containers, which may be shared and contain themselves.

    Args:
      tree: dicts, lists and tuples of tensors and plain values.
      kind: of the tensors in it.
      entry: where one of them lies.
      separator: between the keys that lead to a group or a value.

    Raises:
      BadArchive: it has no tensors by name; two of its entries have one name; it is nested too
        deeply, or has more entries than any checkpoint.
    """
    walk = _Walk(kind, entry, separator)
    walk.visit("", tree, DEEPEST)
    if not walk.groups:
        there = f" besides {next(iter(walk.unread.values()))}" if walk.unread else ""
        raise BadArchive(f"it has no tensors by name{there}")
    groups = {path: store_of(tensors) for path, tensors in walk.groups.items()}
    return Contents(groups, walk.facts, walk.unread)


class _Walk:
    """A way through containers, as `sort_tree`."""

    def __init__(
        self, kind: type | tuple[type, ...], entry: Callable[[Any], Entry], separator: str
    ) -> None:
        self.kind, self.entry, self.separator = kind, entry, separator
        self.groups: dict[str, dict[str, Entry]] = {}
        self.facts: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.taken: set[str] = set()
        self.left, self.letters = ENTRIES, LETTERS

    def visit(self, path: str, value: Any, levels: int) -> None:
        """Add what is at `path`, which contains at most `levels` containers within each other."""
        if not levels:
            raise BadArchive("its containers are nested too deeply")
        match value:
            case _ if isinstance(value, self.kind):
                raise BadArchive("it has a tensor without a name")
            case Inert() | Storage() | Name() | Span() | bytes() | slice():
                self.unread[path] = "an object that is no plain value"
            case Record():
                self.spend(len(value))
                self.visit_all(path, value.items(), levels)
            case dict() if value.keys() >= _OPTIMISER:
                self.unread[path] = "the state of an optimiser"
            case dict():
                self.visit_all(path, value.items(), levels)
            case list() | tuple():
                self.spend(len(value))
                if all(map(_is_plain, value)):
                    self.facts[path] = list(value)
                else:
                    self.visit_all(path, enumerate(value), levels)
            case _ if _is_plain(value):
                self.facts[path] = value
            case _:
                self.unread[path] = "a number of more than 64 bits"

    def visit_all(self, path: str, items: Iterable[tuple[Any, Any]], levels: int) -> None:
        """Add what is in the container at `path`."""
        for key, value in items:
            self.spend(1)
            if not isinstance(key, str | int) or not _is_plain(key):
                self.unread[path] = "entries whose keys are no names"
                continue
            name = str(key)
            below = f"{path}{self.separator}{name}" if path else name
            self.take(below)
            if isinstance(value, self.kind):
                self.groups.setdefault(path, {})[name] = self.entry(value)
            else:
                self.visit(below, value, levels - 1)

    def take(self, path: str) -> None:
        """Refuse a path that is too long, or that an entry has already."""
        self.letters -= len(path)
        if len(path) > LONGEST:
            raise BadArchive(f"a name in it has more than {LONGEST:,} characters")
        if path in self.taken:
            raise BadArchive(f"two of its entries are called {path[:80]!r}")
        self.taken.add(path)

    def spend(self, count: int) -> None:
        """Refuse a file whose few containers, one in the other, would have no end."""
        self.left -= count
        if self.left < 0 or self.letters < 0:
            raise BadArchive("it has more entries than any checkpoint")


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**64
    return isinstance(value, str | float | complex | None)
