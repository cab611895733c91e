"""Matrices as the C++ kernels read them: see matmul.h. Pure rearrangement; knows no threads and no file.

    float    (N, K) -> blocks of 16 rows: (N / 16, K, 16)
    4 bits   (N / 16, K / 8, 16, 4) bytes, the low nibbles being columns 0-3 of eight, the high ones columns 4-7
    8 bits   (N / 16, K / 4, 16, 4) bytes
    scales and zero points   (N / 16, K / G, 16) float16
"""
from dataclasses import dataclass, replace

import numpy as np

from gramme.formats.grouped import Grouped

ROWS = 16
FLOAT_KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
NIBBLES, BYTES, INT8_KV = 3, 4, 5


@dataclass(frozen=True)
class Packed:
    """A laid-out matrix (N, K). A code's value is unit * scale * (code - zero)."""

    data: np.ndarray
    shape: tuple[int, int]
    kind: int
    scales: np.ndarray | None = None
    zeros: np.ndarray | None = None  # None: 8 or 128
    group: int = 0
    unit: float = 1.0  # a power of two that keeps the scales within float16's exact range

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.data, self.scales, self.zeros) if a is not None)


def copy(p: Packed) -> Packed:
    """The same matrix in memory of its own."""
    data, scales, zeros = (None if a is None else _aligned(a) for a in (p.data, p.scales, p.zeros))
    return replace(p, data=data, scales=scales, zeros=zeros)


def pack(w: np.ndarray | Grouped) -> Packed:
    """Raises ValueError for groups that are no multiple of 32."""
    return _integers(w) if isinstance(w, Grouped) else _floats(w)


def _floats(w: np.ndarray) -> Packed:
    blocks = _rows(w).reshape(-1, ROWS, w.shape[1]).transpose(0, 2, 1)
    return Packed(_aligned(blocks), w.shape, FLOAT_KINDS[w.dtype.name])


def _integers(w: Grouped) -> Packed:
    if w.group % 32:
        raise ValueError(f"the kernels want groups of a multiple of 32 columns, not {w.group}")
    codes = _rows(w.codes)
    codes = codes.reshape(-1, ROWS, w.shape[1] // 4, 4).transpose(0, 2, 1, 3)  # block, four columns, row, column
    if w.bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    middle = np.float32(1 << (w.bits - 1))
    unit = _unit(w.scales)
    zeros = None
    if not (w.offsets == w.scales * middle).all():
        with np.errstate(divide="ignore", invalid="ignore"):
            zeros = _scales(np.where(w.scales != 0, w.offsets / w.scales, np.float32(0)))
    return Packed(_aligned(codes), w.shape, NIBBLES if w.bits == 4 else BYTES, _scales(w.scales * np.float32(1 / unit)),
                  zeros, w.group, unit)


def _unit(scales: np.ndarray) -> float:
    """1 where float16 holds every scale as it is; else what brings the largest to about 2**14."""
    half = scales.astype(np.float16).astype(np.float32)
    largest = float(np.abs(scales).max(initial=0))
    if (half == scales).all() or not 0 < largest < float("inf"):
        return 1.0
    return 2.0 ** (np.floor(np.log2(largest)) - 14)


def _scales(a: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return _aligned(_rows(a.astype(np.float16)).reshape(-1, ROWS, a.shape[1]).transpose(0, 2, 1))


def _rows(a: np.ndarray) -> np.ndarray:
    """With rows of zeros to a multiple of 16."""
    missing = -len(a) % ROWS
    return a if not missing else np.concatenate([a, np.zeros((missing, a.shape[1]), a.dtype)])


def _aligned(a: np.ndarray) -> np.ndarray:
    """A contiguous copy that begins on a cache line."""
    room = np.empty(a.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out
