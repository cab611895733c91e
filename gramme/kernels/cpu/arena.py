"""Memory for the results of operations: a result's block is free again when its array dies. Knows no operation.

Blocks are kept for the next result of about that size, so a step allocates nothing once its shape has been seen, and
large results are not mapped and zeroed by the system each time.
"""
import ctypes
import weakref
from typing import Any

import numpy as np

ALIGN = 64


class Arena:
    def __init__(self) -> None:
        self.nbytes = 0  # held in all
        self._free: dict[int, list[int]] = {}  # block size -> addresses
        self._owned: list[np.ndarray[Any, Any]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """An uninitialised array, aligned to a cache line."""
        dtype = np.dtype(dtype)
        size = _block(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        free = self._free.setdefault(size, [])
        address = free.pop() if free else self._grow(size)
        whole = np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)
        weakref.finalize(whole, free.append, address).atexit = False
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return whole[:count].view(dtype).reshape(shape)

    def _grow(self, size: int) -> int:
        owned = np.empty(size + ALIGN, np.uint8)
        self._owned.append(owned)
        self.nbytes += size
        return -(-owned.ctypes.data // ALIGN) * ALIGN


def _block(nbytes: int) -> int:
    """Sizes in steps of an eighth of their power of two: what is lost is at most an eighth."""
    step = max(ALIGN, 1 << max(0, nbytes.bit_length() - 4))
    return max(ALIGN, -(-nbytes // step) * step)
