"""Pickles of PyTorch without PyTorch: tensors and plain containers, and nothing else.

`load` is an interpreter of its own of the few opcodes that a state dict is made of. It never
imports a name: `torch_names` has those that a pickle may have. Every other name, opcode and
persistent id is refused.

A storage is a piece of the file with numbers of one type, a tensor a view of a storage. Whether a
view lies within its storage is checked in `torch_names`, whether a storage lies within the file in
`torch_files`.
"""

import pickletools
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any, BinaryIO

from ddpm_jax.archives import BadArchive
from ddpm_jax.interop.torch_names import (
    INERT,
    STORAGE_NAMES,
    STORAGES,
    TORCH,
    Inert,
    Name,
    Record,
    Span,
    Storage,
    Vocabulary,
    check_key,
)

OPCODES = 2_000_000  # of a pickle: some 50 for each tensor
NAME = 1000  # bytes of a module or of a name in it
TEXT = 1 << 26  # bytes of all texts and long numbers
_MARK = object()
_LENGTHS = {"BINUNICODE": 4, "BINUNICODE8": 8, "BINSTRING": 4, "LONG4": 4}  # bytes before them
_SPANS = {"BINBYTES": 4, "BINBYTES8": 8}  # likewise


def load(
    data: BinaryIO, storages: dict[str, Storage] | None = None, vocabulary: Vocabulary = TORCH
) -> Any:
    """Interpret one pickle, from the position of `data` to its end.

    Args:
      data: where the pickle begins.
      storages: receives those that the pickle refers to, by key.
      vocabulary: what it may name.

    Returns:
      dicts, lists, tuples, strings, bytes, numbers, None, `View`, `Storage`, `Span`, `Inert`, and
      what `vocabulary` makes. Containers may contain themselves.

    Raises:
      BadArchive: it is damaged, or holds something else.
    """
    try:
        # The parser of names warns of escapes in them.
        with warnings.catch_warnings(action="ignore"):
            machine = _Machine({} if storages is None else storages, vocabulary)
            return machine.run(_opcodes(data))
    except BadArchive:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadArchive(f"its pickle is damaged: {error}") from error


def _opcodes(data: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield the opcodes of a pickle with their arguments; of long bytes, where they lie."""
    begin, end = data.tell(), data.seek(0, 2)
    data.seek(begin)
    text = TEXT
    while code := data.read(1):
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None:
            raise BadArchive("its pickle is damaged")
        # The argument of an unknown one, which may be of any length, is not read.
        if opcode.name not in _KNOWN:
            raise BadArchive(f"its pickle has the opcode {opcode.name}, which no tensor needs")
        if opcode.name in _SPANS:
            length = int.from_bytes(data.read(_SPANS[opcode.name]), "little")
            span = Span(data.tell(), data.tell() + length)
            if span.end > end:
                raise BadArchive("its pickle is cut off")
            data.seek(span.end)
            yield opcode.name, span
            continue
        text -= _length(data, opcode.name)
        if text < 0:
            raise BadArchive(f"its pickle has more than {TEXT:,} bytes of text")
        yield opcode.name, opcode.arg.reader(data) if opcode.arg else None


def _length(data: BinaryIO, opcode: str) -> int:
    """Return the bytes of the argument that comes next, where it may be of any length, else 0."""
    at, length = data.tell(), 0
    if opcode in _LENGTHS:
        length = int.from_bytes(data.read(_LENGTHS[opcode]), "little")
    elif opcode == "GLOBAL" and not all(data.readline(NAME).endswith(b"\n") for _ in range(2)):
        raise BadArchive("its pickle is damaged")
    data.seek(at)
    return length


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, storages: dict[str, Storage], vocabulary: Vocabulary) -> None:
        self.storages, self.vocabulary = storages, vocabulary
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = OPCODES

    def spend(self, count: int) -> None:
        """Count steps of work: what is in the memo can be worked on again and again."""
        self.left -= count
        if self.left < 0:
            raise BadArchive(f"its pickle has more than {OPCODES:,} opcodes")

    def run(self, opcodes: Iterator[tuple[str, Any]]) -> Any:
        for opcode, argument in opcodes:
            self.spend(1)
            if opcode == "STOP":
                return self.stack.pop()
            if opcode in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode]())
            elif opcode in _LITERALS:
                self.stack.append(argument)
            elif opcode in _ACTIONS:
                _ACTIONS[opcode](self, argument)
        raise BadArchive("its pickle has no end")

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        """Return the last `count` objects, in the order in which they came."""
        if len(self.stack) < count or any(item is _MARK for item in self.stack[-count:]):
            raise BadArchive("its pickle is damaged")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise BadArchive("its pickle appends to what is no list")

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(pairs) % 2:
            raise BadArchive("its pickle sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[check_key(key)] = value

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if isinstance(function, Inert):
            self.stack.append(INERT)
        elif isinstance(function, Name) and isinstance(arguments, tuple):
            self.spend(sum(len(item) for item in arguments if isinstance(item, Sized)))
            self.stack.append(self.vocabulary.functions[function](*arguments))
        else:
            raise BadArchive("its pickle calls what is no function")

    def new(self) -> None:
        kind, arguments = self.pop(2)
        if isinstance(kind, Inert):
            self.stack.append(INERT)
        elif isinstance(kind, Name) and kind in self.vocabulary.records and arguments == ():
            self.stack.append(self.vocabulary.records[kind]())
        else:
            raise BadArchive("its pickle makes an object of what is no class")

    def build(self) -> None:
        """Set the state of a record.

        That of a dict is passed over: `_metadata` of a state dict, which nothing here needs. A
        tensor may have attributes that decide its values, and is refused.
        """
        target, state = self.pop(2)
        if isinstance(target, Record):
            target.set_state(state)
        elif not isinstance(target, dict | Inert):
            raise BadArchive("its pickle changes the state of what is no dict")
        self.stack.append(target)

    def persistent(self) -> None:
        (saved,) = self.pop(1)
        match saved:
            case ("storage", Name("torch", kind), str(key), _, int(size)) | (
                "storage",
                Name("torch", kind),
                str(key),
                _,
                int(size),
                None,
            ) if size >= 0:
                storage = Storage(key, STORAGES[kind.removesuffix("Storage")], size)
                if self.storages.setdefault(key, storage) != storage:
                    raise BadArchive("its pickle reads a storage in two ways")
                self.stack.append(storage)
            case _:
                raise BadArchive("its pickle refers to what is no storage")

    def name(self, module: Any, name: Any) -> None:
        # Nothing but text is hashed: the hash of a deeply nested tuple overflows the C stack.
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadArchive("its pickle is damaged")
        found = Name(module, name)
        known = self.vocabulary
        if found in known.inert:
            self.stack.append(INERT)
        elif found in known.functions or found in known.records or found in STORAGE_NAMES:
            self.stack.append(found)
        else:
            raise BadArchive(
                f"it asks for {module[:80]}.{name[:80]}, which is no tensor: nothing in "
                "a file of weights is ever executed"
            )


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Inert,
    "MARK": lambda: _MARK,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES"),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": lambda machine, index: machine.memoize(index),
    "LONG_BINPUT": lambda machine, index: machine.memoize(index),
    "MEMOIZE": lambda machine, _: machine.memoize(None),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
_KNOWN = {*_CONSTANTS, *_LITERALS, *_ACTIONS, *_SPANS, "PROTO", "FRAME", "STOP"}
