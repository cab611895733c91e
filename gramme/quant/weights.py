"""A weight knows its bytes and how to multiply; it knows no model and no file format.

`Weight` is the whole contract. `Dense` keeps every value as a float, `Integers` keeps codes of 4 or 8 bits.
"""
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gramme.kernels.ops import Array, Ops, Permuted


class Weight(Protocol):
    """A matrix (N, K) with an optional bias (N,)."""

    packed: Any  # laid out for the backend's kernels
    bias: Array | None

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def act(self) -> str | Permuted: ...  # the form in which `matmul` wants its input
    def matmul(self, x: Any) -> Array: ...  # Act of (T, K) -> (T, N)
    def rows(self, ids: Array) -> Array: ...  # (T,) -> (T, K)
    def dense(self) -> Array: ...  # (N, K) float32


@dataclass(frozen=True)
class Dense:
    """An unquantised matrix on the backend's device."""

    ops: Ops
    packed: Array  # (N, K)
    bias: Array | None = None  # (N,)

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.packed.shape)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def act(self) -> str:
        return "float"

    def matmul(self, x: Any) -> Array:
        return self.ops.matmul(x, self.packed, self.bias)

    def rows(self, ids: Array) -> Array:
        return self.ops.take(self.packed, ids)

    def dense(self) -> Array:
        return self.packed


@dataclass(frozen=True)
class Integers:
    """A matrix of 4- or 8-bit codes with a scale and an offset for each group, laid out by the backend."""

    ops: Ops
    packed: Any
    shape: tuple[int, int]
    nbytes: int
    act: str | Permuted
    bias: Array | None = None  # (N,)

    def matmul(self, x: Any) -> Array:
        return self.ops.matmul(x, self.packed, self.bias)

    def rows(self, ids: Array) -> Array:
        stored = self.ops.take(self.packed, ids)
        return stored[:, self.act.places] if isinstance(self.act, Permuted) else stored

    def dense(self) -> Array:
        return self.rows(np.arange(self.shape[0], dtype=np.int32))
