"""Linear maps along one axis of an array, given by sparse matrices known when tracing.

y[..., i, ...] = sum_k M[i, k] x[..., k, ...] is computed by one gather for each of the most
non-zeros that a row has, which XLA for CPU compiles to one short loop. JAX would transpose the
gathers to scatters, of which XLA makes slow loops: here the transpose is the map of the transposed
matrix. `winograd.py` is made of these maps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from numpy.typing import ArrayLike


class Sparse(NamedTuple):
    """A matrix by the non-zeros of its rows, hashable as parameters of primitives must be."""

    rows: tuple[tuple[tuple[int, float], ...], ...]  # (column, weight) of each non-zero of a row
    columns: int

    @property
    def transposed(self) -> "Sparse":
        """The transposed matrix."""
        rows = [[] for _ in range(self.columns)]
        for i, row in enumerate(self.rows):
            for column, weight in row:
                rows[column].append((i, weight))
        return Sparse(tuple(map(tuple, rows)), len(self.rows))


def sparse(matrix: ArrayLike) -> Sparse:
    """Return a matrix [rows, columns] by its non-zeros."""
    matrix = np.asarray(matrix)
    rows = (tuple((int(k), float(row[k])) for k in np.flatnonzero(row)) for row in matrix)
    return Sparse(tuple(rows), matrix.shape[1])


def apply_along(matrix: Sparse, x: jax.Array, axis: int) -> jax.Array:
    """Return y[..., i, ...] = sum_k matrix[i, k] x[..., k, ...], the index being of that axis."""
    assert x.shape[axis] == matrix.columns, (x.shape, axis, matrix.columns)
    return _map.bind(x, matrix=matrix, axis=axis)


def _apply(x: jax.Array, *, matrix: Sparse, axis: int) -> jax.Array:
    def term(k: int) -> jax.Array:
        columns, weights = zip(*(_entry(row, k) for row in matrix.rows), strict=True)
        taken = x.at[(slice(None),) * axis + (np.array(columns),)].get(
            mode="promise_in_bounds", wrap_negative_indices=False
        )
        if all(weight == 1 for weight in weights):
            return taken
        shape = [len(weights) if i == axis else 1 for i in range(x.ndim)]
        return taken * np.array(weights, x.dtype).reshape(shape)

    return sum((term(k) for k in range(1, max(map(len, matrix.rows)))), term(0))


def _entry(row: tuple[tuple[int, float], ...], k: int) -> tuple[int, float]:
    """Return the k-th non-zero of a row; one with fewer repeats its first, with the weight 0."""
    return row[k] if k < len(row) else (row[0][0] if row else 0, 0.0)


def _shape(x: Any, *, matrix: Sparse, axis: int) -> Any:
    return x.update(shape=(*x.shape[:axis], len(matrix.rows), *x.shape[axis + 1 :]))


def _batched(args: Any, dims: Any, *, matrix: Sparse, axis: int) -> Any:
    (x,), (dim,) = args, dims
    return apply_along(matrix, jnp.moveaxis(x, dim, 0), axis + 1), 0


_map = Primitive("sparse_map")
_map.def_impl(jax.jit(_apply, static_argnames=("matrix", "axis")))
_map.def_abstract_eval(_shape)
mlir.register_lowering(_map, mlir.lower_fun(_apply, multiple_results=False))
batching.primitive_batchers[_map] = _batched
ad.deflinear2(_map, lambda y_bar, _, *, matrix, axis: [apply_along(matrix.transposed, y_bar, axis)])
