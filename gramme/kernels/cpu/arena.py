"""Memory for the results of operations: a result's block is free again when its array dies. Knows no operation.

Blocks are cut from a room where one was taken. What it does not hold is kept for the next result of about that size, so
a step allocates nothing once its shape has been seen, and large results are not mapped and zeroed by the system each
time. What is kept is bounded: steps of every length would each leave blocks of their own sizes behind, twelve times as
much as the largest needs.
"""
import ctypes
import weakref
from bisect import bisect
from typing import Any

import numpy as np

ALIGN = 64
LARGE_SHARE = 12  # what takes more than such a part of a room is large
SLACK = 1.25  # held in all over the most that was ever in use at once


class Room:
    """Memory of one piece. It is lent in contiguous parts, large ones from its end, others from its beginning, where
    they fit first; parts that come back join their neighbours. Were the widest array of a layer cut from among the
    others, what is left of its place would rarely hold it again. `of`: the memory of another room, for users who never
    need both at once."""

    def __init__(self, nbytes: int, of: "Room | None" = None) -> None:
        nbytes = -(-nbytes // ALIGN) * ALIGN
        self._memory = np.zeros(nbytes + ALIGN, np.uint8) if of is None else of._memory
        start = -(-self._memory.ctypes.data // ALIGN) * ALIGN
        self.start, self.nbytes = start, nbytes
        self._free = [(start, nbytes)]  # (address, bytes), in their order

    def touch(self) -> None:
        """Until then its zeros may be promised only."""
        self._memory[:: 1 << 12] = 1

    def holds(self, address: int) -> bool:
        return self.start <= address < self.start + self.nbytes

    def take(self, nbytes: int) -> int | None:
        large = nbytes * LARGE_SHARE > self.nbytes
        for i in reversed(range(len(self._free))) if large else range(len(self._free)):
            address, size = self._free[i]
            if size >= nbytes:
                left = address if large else address + nbytes
                self._free[i : i + 1] = [(left, size - nbytes)] if size > nbytes else []
                return address + size - nbytes if large else address
        return None

    def give(self, address: int, nbytes: int) -> None:
        i = bisect(self._free, (address, nbytes))
        if i < len(self._free) and self._free[i][0] == address + nbytes:
            nbytes += self._free.pop(i)[1]
        if i and sum(self._free[i - 1]) == address:
            address, before = self._free.pop(i - 1)
            nbytes, i = nbytes + before, i - 1
        self._free.insert(i, (address, nbytes))


class Arena:
    """`slack` may be infinite: then a block never moves or goes, which recorded calls rely on."""

    def __init__(self, slack: float = SLACK) -> None:
        self.room: Room | None = None
        self.nbytes = 0  # held in all, the room aside
        self._slack, self._idle, self._most = slack, 0, 0
        self._free: dict[int, list[int]] = {}  # block size -> addresses
        self._owned: dict[int, np.ndarray[Any, Any]] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """An uninitialised array, aligned to a cache line."""
        dtype = np.dtype(dtype)
        size = _block(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        free = self._free.setdefault(size, [])
        address = self.room.take(size) if self.room is not None else None
        if address is not None:
            pass
        elif free:
            address = free.pop()
            self._idle -= size
        else:
            address = self._grow(size)
        whole = np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)
        weakref.finalize(whole, self._take_back, address, size).atexit = False
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return whole[:count].view(dtype).reshape(shape)

    def holds(self, a: np.ndarray[Any, Any]) -> bool:
        """Whether this is a result made here, or a part of one."""
        while isinstance(a.base, np.ndarray):
            a = a.base
        address = a.ctypes.data
        return address in self._owned or (self.room is not None and self.room.holds(address))

    def _grow(self, size: int) -> int:
        self._most = max(self._most, self.nbytes - self._idle + size)
        if self.nbytes + size > self._slack * self._most:
            self._drop()
        owned = np.empty(size + ALIGN, np.uint8)
        address = -(-owned.ctypes.data // ALIGN) * ALIGN
        self._owned[address] = owned
        self.nbytes += size
        return address

    def _take_back(self, address: int, size: int) -> None:
        if self.room is not None and self.room.holds(address):
            self.room.give(address, size)
            return
        self._free.setdefault(size, []).append(address)
        self._idle += size

    def _drop(self) -> None:
        """Give the blocks that nobody uses back to the system."""
        for addresses in self._free.values():
            for address in addresses:
                del self._owned[address]
        self._free.clear()
        self.nbytes -= self._idle
        self._idle = 0


def _block(nbytes: int) -> int:
    """Sizes in steps of an eighth of their power of two: what is lost is at most an eighth."""
    step = max(ALIGN, 1 << max(0, nbytes.bit_length() - 4))
    return max(ALIGN, -(-nbytes // step) * step)
