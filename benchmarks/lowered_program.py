"""A lowered program, read: what it multiplies, what it moves, and what a GPU would rather not do.

`read` walks the StableHLO of a program with all calls inlined and returns its kernels as XLA for
GPUs would make them, by a simple model of fusion, so that FLOP and bytes need no GPU:

- products of matrices, convolutions, library calls, reductions, gathers, scatters, sorts and loops
  are kernels, whose results are in memory;
- everything else (sums, conversions, broadcasts, slices, ...) is computed where it is read, from
  the results that are in memory; it becomes a kernel of its own only where a product, a library
  call or the program's result needs it in memory, or where it is a sum that several kernels read
  and that is smaller than what it is computed from, such as that at the end of a residual block.

A kernel reads each of its inputs once and writes its result once. Caches and padding of tiles are
not modelled, the body of a loop counts once.
"""

import collections
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax._src.lib.mlir import ir

ITEM_BYTES = {"i1": 1, "ui8": 1, "i8": 1, "bf16": 2, "f16": 2, "f32": 4, "i32": 4, "ui32": 4}
WIDE = 8  # bytes of any other type
PRODUCTS = ("stablehlo.dot_general", "stablehlo.convolution")
STORED = (  # results that are in memory, besides those of products and library calls
    "stablehlo.reduce",
    "stablehlo.gather",
    "stablehlo.scatter",
    "stablehlo.sort",
    "stablehlo.dynamic_update_slice",
    "stablehlo.reduce_window",
    "stablehlo.while",
)
LARGE = 2**16  # elements from which an array is worth a word
SMALLER = 1.25  # times smaller than what it is computed from is a sum worth storing
ATTENTION = "__cudnn$fmha"  # the library calls that compute attention


class Array(NamedTuple):
    """The shape and type of a value."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * ITEM_BYTES.get(self.dtype, WIDE)


class Kernel(NamedTuple):
    """What one launch computes."""

    kind: str  # "convolution", "dot_general", "reduce", ..., "fusion"; a library call's name
    layer: str  # where it stands in the network
    result: Array
    dtypes: tuple[str, ...]  # of what a product multiplies
    flops: float  # of products and attention alone
    bytes: float  # read and written
    # of a convolution: "forward", "of the input", "of the kernel", or the order of its axes; of a
    # product of matrices "plain" or "batched"
    form: str = ""


class Moved(NamedTuple):
    """An operation that copies or looks up a large array."""

    kind: str
    layer: str
    result: Array


class Program(NamedTuple):
    """The kernels of a program in their order, and what else is worth a word."""

    kernels: tuple[Kernel, ...]
    moved: tuple[Moved, ...]  # transpositions, gathers, scatters, sorts of large arrays
    host_calls: tuple[str, ...]  # callbacks, infeeds, outfeeds
    loops: int
    wide: int  # operations on 64-bit floats


def read(lowered: jax.stages.Lowered) -> Program:
    """Returns what a lowered program consists of."""
    module = lowered.compiler_ir("stablehlo")
    with module.context:
        alone = _read(module, frozenset())
        shared = frozenset(add for add, readers in alone.readers.items() if readers > 1)
        reader = _read(module, shared)
    return Program(
        tuple(reader.kernels), tuple(reader.moved), tuple(reader.host), reader.loops, reader.wide
    )


def _read(module: ir.Module, shared: frozenset[int]) -> "_Reader":
    functions = {op.attributes["sym_name"].value: op.operation for op in module.body.operations}
    reader = _Reader(functions, shared)
    main = functions["main"].regions[0].blocks[0]
    arguments = {value: _stored(_array(value.type)) for value in main.arguments}
    for result in reader.block(main, arguments):
        reader.in_memory(result, "result")
    return reader


class _Value:
    """A value, and what it is computed from."""

    def __init__(self, array: Array, sources: Iterable["_Value"] = (), layer: str = ""):
        self.array, self.layer = array, layer
        self.inputs = {}  # the arrays in memory that it is computed from; itself if it is stored
        self.adds = frozenset()  # the sums on the way from these to it, by number
        for source in sources:
            self.inputs |= source.inputs
            self.adds |= source.adds

    @property
    def is_stored(self) -> bool:
        return id(self) in self.inputs

    @property
    def bytes_of_inputs(self) -> int:
        return sum(array.bytes for array in self.inputs.values())

    def store(self) -> None:
        self.inputs, self.adds = {id(self): self.array}, frozenset()


def _stored(array: Array) -> _Value:
    value = _Value(array)
    value.store()
    return value


class _Reader:
    """Walks a program; `shared` are the sums to store, by their number in the program."""

    def __init__(self, functions: dict[str, ir.Operation], shared: frozenset[int]):
        self.functions, self.shared = functions, shared
        self.kernels, self.moved, self.host = [], [], []
        self.loops = self.wide = self.adds = 0
        self.readers = collections.Counter()  # kernels that read a sum, by its number

    def block(self, block: ir.Block, environment: dict) -> list[_Value]:
        """Reads the operations of a block; returns what it returns."""
        for op in block.operations:
            operands = [environment[value] for value in op.operands]
            name = op.operation.name
            if name in ("func.return", "stablehlo.return"):
                return operands
            if name == "func.call":
                body = self.functions[op.attributes["callee"].value].regions[0].blocks[0]
                results = self.block(body, dict(zip(body.arguments, operands, strict=True)))
            else:
                results = self.operation(op, name, operands, environment)
            environment |= dict(zip(op.results, results, strict=True))
        return []

    def operation(
        self, op: ir.OpView, name: str, operands: list[_Value], environment: dict
    ) -> list[_Value]:
        arrays = [_array(value.type) for value in op.results]
        layer = _layer(op)
        self.wide += any(array.dtype == "f64" for array in arrays)
        short = name.removeprefix("stablehlo.")
        if (
            arrays
            and arrays[0].size >= LARGE
            and short in ("transpose", "gather", "scatter", "sort")
        ):
            self.moved.append(Moved(short, layer, arrays[0]))
        if short in ("infeed", "outfeed", "send", "recv"):
            self.host.append(short)
        if name == "stablehlo.while":
            return self._loop(op, operands, arrays, environment)
        if name == "stablehlo.custom_call":
            short = op.attributes["call_target_name"].value
            if "callback" in short:
                self.host.append(short)
            if short in ("Sharding", "annotate_device_placement"):
                return operands[:1]
        if name in PRODUCTS or name == "stablehlo.custom_call":
            for operand in operands:
                self.in_memory(operand, layer)
        elif name not in STORED:
            results = [_Value(array, operands, layer) for array in arrays]
            if name == "stablehlo.add":
                self._sum(results[0])
            return results
        self._add(short, op, layer, operands, arrays)
        return list(map(_stored, arrays))

    def _sum(self, result: _Value) -> None:
        """Stores a sum that several kernels read, if that is less than what it is computed from.

        Those who read it do not read the sums in it.
        """
        self.adds += 1
        if SMALLER * result.array.bytes < result.bytes_of_inputs:
            if self.adds in self.shared:
                self.in_memory(result, result.layer)
            else:
                result.adds = frozenset({self.adds})

    def _add(
        self, kind: str, op: ir.OpView, layer: str, read: list[_Value], arrays: list[Array]
    ) -> None:
        together = self._reads(read)
        moved = together.bytes_of_inputs + sum(array.bytes for array in arrays)
        dtypes, flops, form = (), 0.0, ""
        if kind == "dot_general":
            dtypes, flops = _types(read), _dot_flops(op, read, arrays[0])
            numbers = str(op.attributes["dot_dimension_numbers"])
            form = "batched" if "lhs_batching_dimensions" in numbers else "plain"
        elif kind == "convolution":
            dtypes, form = _types(read), _form(op)
            flops = _convolution_flops(op, read, arrays[0])
        elif kind.startswith(ATTENTION):
            dtypes, flops = _types(read[:3]), _attention_flops(kind, read)
        self.kernels.append(Kernel(kind, layer, arrays[0], dtypes, flops, moved, form))

    def _reads(self, values: Iterable[_Value]) -> _Value:
        """A kernel reads these; each array in memory counts once."""
        together = _Value(Array((), "token"), values)
        self.readers.update(together.adds)
        return together

    def in_memory(self, value: _Value, layer: str) -> None:
        """Stores a value by a kernel of its own if it is not in memory yet."""
        if value.is_stored or not value.inputs:  # or made of constants
            return
        moved = self._reads([value]).bytes_of_inputs + value.array.bytes
        where = value.layer or layer
        self.kernels.append(Kernel("fusion", where, value.array, (), 0.0, moved))
        value.store()

    def _loop(
        self, op: ir.OpView, operands: list[_Value], arrays: list[Array], environment: dict
    ) -> list[_Value]:
        self.loops += 1
        for operand in operands:
            self.in_memory(operand, "loop")
        body = op.regions[1].blocks[0]
        carried = map(_stored, arrays)
        inside = environment | dict(zip(body.arguments, carried, strict=True))
        for result in self.block(body, inside):
            self.in_memory(result, "loop")
        return list(map(_stored, arrays))


def _array(kind: ir.Type) -> Array:
    if not isinstance(kind, ir.RankedTensorType):
        return Array((), "token")
    return Array(tuple(kind.shape), str(kind.element_type))


def _layer(op: ir.OpView) -> str:
    """The path of the layer in the network, out of the names that JAX gives operations."""
    text = str(op.location).removeprefix("loc(").lstrip('"').split('"')[0]
    return "/".join(part for part in text.split("/")[:-1] if not part.startswith(("jit(", "pjit")))


def _types(read: list[_Value]) -> tuple[str, ...]:
    return tuple(value.array.dtype for value in read)


def _dot_flops(op: ir.OpView, read: list[_Value], result: Array) -> float:
    text = str(op.attributes["dot_dimension_numbers"])
    axes = text.split("lhs_contracting_dimensions = [")[1].split("]")[0]
    shape = read[0].array.shape
    return 2.0 * result.size * math.prod(shape[int(axis)] for axis in axes.split(","))


def _convolution_flops(op: ir.OpView, read: list[_Value], result: Array) -> float:
    """Those of all places of the kernel: what it multiplies by zeros around an image included."""
    kernel, numbers = read[1].array, _numbers(op)
    out = numbers.split("x[")[1].split("]")[0].split(", ").index("o")
    per_place = kernel.size / kernel.shape[out]
    held = _list(op, "lhs_dilation")  # zeros between pixels, in a gradient of the input
    return 2.0 * result.size * per_place / math.prod(held)


def _attention_flops(kind: str, read: list[_Value]) -> float:
    """Two products forward; five backward, of which one is the scores again."""
    B, L, N, D = read[0].array.shape
    keys = read[1].array.shape[1]
    return 2.0 * B * N * L * keys * D * (5 if "Backward" in kind else 2)


def _numbers(op: ir.OpView) -> str:
    text = str(op.attributes["dimension_numbers"])
    return text.split("<", 1)[1].rsplit(">", 1)[0]


def _list(op: ir.OpView, name: str) -> list[int]:
    if name not in op.attributes:
        return [1]
    return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def _form(op: ir.OpView) -> str:
    """What a convolution computes, by the order of its axes.

    XLA for GPUs gives the three named ones to cuDNN.
    """
    numbers = _numbers(op)
    forms = {
        "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]": "forward",
        "[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]": "of the input",
        "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]": "of the kernel",
    }
    return forms.get(numbers, numbers)
