"""A stoppable computation for each image of a batch, on all local devices."""

from collections.abc import Callable
from typing import Any, Protocol

import chex
import numpy as np

from ddpm_jax.distributed import pmap
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.dispatch import Pace

# (x_0 on [-1, 1], labels int [B] or a pytree of arrays [B, ...]) -> the conditions of the images,
# leaves [B, ...]
MakeCondition = Callable[[chex.Array, Any], Any]


class Parts(Protocol):
    """The parts of a computation on one device; traced. Leaves that are carried are [B, ...].

    `shared` is (params, key, draw), `examples` is (images uint8 [B, H, W, C], index int32 [B],
    labels).
    """

    total: int  # number of rows

    def begin(self, shared: Any, examples: Any) -> Any:
        """Return the carry before the first row."""
        ...

    def advance(
        self, shared: Any, examples: Any, carry: Any, first: Any, last: Any
    ) -> tuple[Any, chex.Array]:
        """Compute the rows first..last-1; also return whether nothing is left to compute."""
        ...

    def finish(self, shared: Any, examples_and_carry: Any) -> Any:
        """Return the result; the first axis is that of the images."""
        ...


class BatchProgram:
    """`Parts`, compiled for the local devices, and the pace of the dispatches."""

    def __init__(self, parts: Parts):
        self._total = parts.total
        self._begin = pmap.map_examples(parts.begin)
        self._advance = pmap.map_segment(parts.advance)
        self._finish = pmap.map_examples(parts.finish)
        self._pace = Pace()

    def to_devices(self, images: np.ndarray, index: np.ndarray, labels: Any) -> Any:
        """Copy a batch, a multiple of the local devices, to the devices."""
        chex.assert_type(images, np.uint8)
        return pmap.to_devices([(images, np.asarray(index, np.int32), labels)])

    def run(self, params: Any, key: chex.PRNGKey, draw: int, examples: Any) -> Any:
        """Return the result of a batch on the host; `examples` come from `to_devices`.

        Raises:
          Stopped: see `dispatch.walk`.
        """
        shared = pmap.replicate((params, key, np.int32(draw)))
        carry = dispatch.walk(
            lambda carry, first, last: self._advance(shared, examples, carry, first, last),
            self._begin(shared, examples),
            self._total,
            pace=self._pace,
        )
        return pmap.unshard(self._finish(shared, (examples, carry)))


def given(make_condition: MakeCondition | None, x_0: chex.Array, labels: Any) -> tuple[Any, ...]:
    """Return (the condition,), or () for an unconditional model."""
    return () if make_condition is None else (make_condition(x_0, labels),)
