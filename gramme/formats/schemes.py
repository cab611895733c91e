"""How integer and float8 matrices are packed in a safetensors checkpoint: the tensors of each, checked, then read.

One class for each layout. Every tensor's type and shape is checked before a matrix is unpacked. Knows no config file.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import ml_dtypes
import numpy as np

from gramme.config import LOSS, ModelError
from gramme.formats import packed
from gramme.formats.checkpoint import Checkpoint
from gramme.formats.grouped import Form, Grouped, Reordered

Array = np.ndarray[Any, Any]
Matrix = Array | Grouped | Reordered
INT32, INT8, FP8 = (np.dtype(np.int32),), (np.dtype(np.int8),), (np.dtype(ml_dtypes.float8_e4m3fn),)
FLOATS = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32)))
LEAST_GROUP = 16  # columns


class Scheme(Protocol):
    """The tensors that a matrix takes; `marker` is the one that says that it is packed at all."""

    marker: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    note: ClassVar[str]  # what reading it costs

    def read(self, m: "Parts") -> Matrix: ...
    def form(self, columns: int) -> Form | None: ...  # None: floats


class Parts:
    """The tensors of one matrix, each checked for its type and shape."""

    def __init__(self, checkpoint: Checkpoint, module: str):
        self._checkpoint, self._module = checkpoint, module

    def get(self, part: str, dtypes: Sequence[np.dtype[Any]], *shapes: tuple[int | None, ...]) -> Array | None:
        """None where there is none; None in a shape is any size. Raises ModelError naming file and tensor."""
        name = f"{self._module}.{part}"
        if name not in self._checkpoint.names:
            return None
        a = self._checkpoint.tensor(name)
        if a.dtype not in dtypes:
            raise self.error(part, f"is {a.dtype}, not {' or '.join(d.name for d in dtypes)}")
        if not any(_fits(a.shape, shape) for shape in shapes):
            want = " or ".join(str(["any" if n is None else n for n in shape]).replace("'", "") for shape in shapes)
            raise self.error(part, f"has shape {list(a.shape)}, not {want}")
        if dtypes is FLOATS and not np.isfinite(a.astype(np.float32)).all():
            raise self.error(part, "is not finite everywhere")
        return a

    def need(self, part: str, dtypes: Sequence[np.dtype[Any]], *shapes: tuple[int | None, ...]) -> Array:
        a = self.get(part, dtypes, *shapes)
        if a is None:
            raise self.error(part, "is missing")
        return a

    def columns(self, g_idx: Array | None, groups: int) -> Array | None:
        """g_idx, when each of its groups is one that there is."""
        if g_idx is not None and g_idx.size and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups:
            raise self.error("g_idx", f"holds groups from {g_idx.min()} to {g_idx.max()}, there are {groups}")
        return g_idx

    def groups(self, part: str, columns: int, size: int) -> int:
        """How many groups of `size` there are in the columns; -1 is one."""
        size = columns if size == -1 else size
        if not columns or columns % size or size % LEAST_GROUP:
            raise self.error(part, f"{columns} columns are not whole groups of {size}, a multiple of {LEAST_GROUP}")
        return columns // size

    def error(self, part: str, what: str) -> ModelError:
        name = f"{self._module}.{part}"
        return ModelError(f"{self._checkpoint.file_of(name)}: tensor {name!r:.120}: {what}")


@dataclass(frozen=True)
class GPTQ:
    bits: int
    group: int
    symmetric: bool
    zero_shift: int  # what is missing from the zero points: 1 in version 1
    marker: ClassVar[str] = "qweight"
    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    note: ClassVar[str] = ("GPTQ is read without loss; where q, k and v, or gate and up, are in different "
                           "act-orders, they are rounded to 8 bits in groups of 32")

    def read(self, m: Parts) -> Matrix:
        qweight = m.need("qweight", INT32, (None, None))
        columns, rows = qweight.shape[0] * 32 // self.bits, qweight.shape[1]
        groups = m.groups("qweight", columns, self.group)
        scales = m.need("scales", FLOATS, (groups, rows))
        zeros = None  # published files of symmetric weights disagree on what theirs hold
        if not self.symmetric:
            if rows * self.bits % 32:
                raise m.error("qweight", f"{rows} rows do not fill the words of qzeros")
            zeros = m.need("qzeros", INT32, (groups, rows * self.bits // 32))
        g_idx = m.columns(m.get("g_idx", INT32, (columns,)), groups)
        try:
            return packed.gptq(qweight, zeros, scales, g_idx, self.bits, columns // groups, self.zero_shift)
        except ValueError as error:
            raise m.error("g_idx", str(error)) from None

    def form(self, columns: int) -> Form:
        return _form(self.bits, self.group, self.symmetric, columns)


@dataclass(frozen=True)
class AWQ:
    group: int
    marker: ClassVar[str] = "qweight"
    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    note: ClassVar[str] = "AWQ is read without loss"

    def read(self, m: Parts) -> Matrix:
        qweight = m.need("qweight", INT32, (None, None))
        columns, words = qweight.shape
        groups = m.groups("qweight", columns, self.group)
        zeros = m.need("qzeros", INT32, (groups, words))
        return packed.awq(qweight, zeros, m.need("scales", FLOATS, (groups, words * 8)))

    def form(self, columns: int) -> Form:
        return _form(4, self.group, False, columns)


@dataclass(frozen=True)
class Packed:
    """compressed-tensors' pack-quantized."""

    bits: int
    group: int
    symmetric: bool
    marker: ClassVar[str] = "weight_packed"
    parts: ClassVar[tuple[str, ...]] = (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    note: ClassVar[str] = "compressed-tensors pack-quantized is read without loss"

    def read(self, m: Parts) -> Matrix:
        words = m.need("weight_packed", INT32, (None, None))
        shape = m.need("weight_shape", (np.dtype(np.int64), *INT32), (2,)).tolist()
        rows, columns = words.shape[0], shape[1]
        if shape[0] != rows or not 0 < columns <= words.shape[1] * 32 // self.bits < columns + 32 // self.bits:
            raise m.error("weight_shape", f"is {shape}, weight_packed holds {rows} rows of {words.shape[1]} words")
        groups = m.groups("weight_packed", columns, self.group)
        scales = m.need("weight_scale", FLOATS, (rows, groups), *[(1,)] * (groups == 1))
        zeros = None if self.symmetric else self._zeros(m, rows, groups)
        g_idx = m.columns(m.get("weight_g_idx", INT32, (columns,)), groups)
        codes = np.ascontiguousarray(packed.codes_of(words, self.bits)[:, :columns])
        try:
            return packed.compressed(codes, scales, zeros, self.bits, g_idx)
        except ValueError as error:
            raise m.error("weight_g_idx", str(error)) from None

    def _zeros(self, m: Parts, rows: int, groups: int) -> Array:
        """Packed along the rows; signed bytes in files of early versions."""
        short = -(-rows * self.bits // 32)
        a = m.need("weight_zero_point", (*INT32, *INT8), (short, groups), (rows, groups))
        if a.dtype in INT8:
            return _unsigned(m, "weight_zero_point", a, self.bits)
        if len(a) != short:
            raise m.error("weight_zero_point", f"has {len(a)} rows of words, not {short}")
        return np.ascontiguousarray(packed.codes_of(a.T, self.bits)[:, :rows].T)

    def form(self, columns: int) -> Form:
        return _form(self.bits, self.group, self.symmetric, columns)


@dataclass(frozen=True)
class Int:
    """compressed-tensors' int-quantized: a code a byte. Activations are rounded group by group, not token by token."""

    bits: int
    group: int
    symmetric: bool
    marker: ClassVar[str] = "weight_scale"
    parts: ClassVar[tuple[str, ...]] = ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point")
    note: ClassVar[str] = ("int-quantized weights are read without loss; their activations are rounded in "
                           "groups of 32 or 128 columns, not by token")

    def read(self, m: Parts) -> Matrix:
        weight = m.need("weight", INT8, (None, None))
        rows, columns = weight.shape
        groups = m.groups("weight", columns, self.group)
        shapes = [(rows, groups), *[(1,)] * (groups == 1)]
        scales, zeros = m.need("weight_scale", FLOATS, *shapes), None
        if not self.symmetric:
            zeros = _unsigned(m, "weight_zero_point", m.need("weight_zero_point", INT8, *shapes), self.bits)
        return packed.compressed(_unsigned(m, "weight", weight, self.bits), scales, zeros, self.bits)

    def form(self, columns: int) -> Form:
        return _form(self.bits, self.group, self.symmetric, columns)


@dataclass(frozen=True)
class Float:
    """compressed-tensors' float-quantized: float8 times a scale, widened."""

    block: tuple[int, int] | None  # rows and columns that share a scale; None: a row, or all
    marker: ClassVar[str] = "weight_scale"
    parts: ClassVar[tuple[str, ...]] = ("weight_scale", "input_scale")
    note: ClassVar[str] = (f"{LOSS}no kernel multiplies float8 here: such weights are widened to the dtype of the "
                           "others, twice the bytes")

    def read(self, m: Parts) -> Matrix:
        weight = m.need("weight", FP8, (None, None))
        rows, columns = weight.shape
        if self.block is None:
            scale = m.need("weight_scale", FLOATS, (rows, 1), (1,)).astype(np.float32)
        else:
            high, wide = self.block
            scale = m.need("weight_scale", FLOATS, (-(-rows // high), -(-columns // wide))).astype(np.float32)
            scale = np.repeat(np.repeat(scale, high, 0)[:rows], wide, 1)[:, :columns]
        return weight.astype(np.float32) * scale

    def form(self, columns: int) -> None:
        return None


def _form(bits: int, group: int, symmetric: bool, columns: int) -> Form:
    return Form(bits, columns if group == -1 else group, not symmetric)


def _unsigned(m: Parts, part: str, a: Array, bits: int) -> Array:
    """Signed codes of one byte with 2^(bits - 1) added."""
    half = 1 << (bits - 1)
    if bits < 8 and a.size and not -half <= int(a.min()) <= int(a.max()) < half:
        raise m.error(part, f"holds values from {a.min()} to {a.max()}, {bits} bits reach from {-half} to {half - 1}")
    return (a.view(np.uint8) + np.uint8(half)).astype(np.uint8, copy=False)


def _fits(shape: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return len(shape) == len(want) and all(w is None or n == w for n, w in zip(shape, want, strict=True))
