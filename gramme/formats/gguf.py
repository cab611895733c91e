"""Reads GGUF files: checked metadata and tensor table, then tensors from one memory map. Knows no model.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3 (little-endian). Everything that the header claims is
checked against the file's size, in integers that do not overflow, before anything is allocated; each read of the header
goes through `_Cursor.take`.
"""
import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gramme.config import LOSS, ModelError
from gramme.formats.files import refuse_pickle, regular_size
from gramme.formats.gguf_blocks import TYPES, UNREAD, BlockType
from gramme.formats.grouped import Form, Grouped

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 32 << 20  # metadata and tensor table; 262,144 tokens with their merges take 12 MB
MAX_ENTRIES = 1 << 14  # metadata keys, and tensors
MAX_STRING_BYTES = 8 << 20
MAX_STRINGS = 1 << 19  # of one array; the longest known list has 514,906 merges
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "|b1", 10: "<u8", 11: "<i8",
           12: "<f8"}
LENGTH = struct.Struct("<Q")


class Entry(NamedTuple):
    """One tensor: its shape in numpy's order, and its bytes within the data."""

    shape: tuple[int, ...]
    kind: BlockType
    begin: int
    end: int


class GGUFFile:
    """Raises ModelError, naming the file, the key or tensor and the numbers, when the file is not what it says."""

    def __init__(self, path: Path):
        self.path = path
        size = regular_size(path)
        with path.open("rb") as f:
            refuse_pickle(path, head := f.read(len(MAGIC)))
        if head != MAGIC or size < 24:
            raise ModelError(f"{path.name} is no GGUF file: {size} bytes that begin with {head!r}")
        whole = np.memmap(path, np.uint8, "r")
        cursor = _Cursor(path.name, whole.data[:MAX_HEADER_BYTES], size)
        tensors, pairs = _counts(cursor)
        self.metadata = _metadata(cursor, pairs)
        align = self._alignment()
        table = [_tensor_info(cursor, i) for i in range(tensors)]
        start = -(-cursor.at // align) * align
        self._entries = self._checked(table, align, size - start)
        self._data = whole[start:]
        self.notes = _notes(self._entries)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def home(self, name: str) -> str:
        return self.path.name

    def entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise ModelError(f"{self.path.name}: there is no tensor {name!r:.120}")
        return self._entries[name]

    def form(self, name: str, columns: int) -> Form | None:
        """None for floats, and where there is no such tensor."""
        return self._entries[name].kind.form if name in self._entries else None

    def tensor(self, name: str) -> np.ndarray[Any, Any] | Grouped:
        """A read-only view of the map for float types, `Grouped` for integer ones."""
        shape, kind, begin, end = self.entry(name)
        rows = math.prod(shape[:-1])
        raw = self._data[begin:end].reshape(rows, shape[-1] // kind.values, kind.nbytes)
        with np.errstate(invalid="ignore", over="ignore"):
            a = kind.read(raw)
        if not isinstance(a, Grouped):
            return a.reshape(shape)
        if not np.isfinite(a.scales).all() or not np.isfinite(a.offsets).all():
            raise self._error(name, f"a scale of its {kind.name} blocks is not finite")
        return a

    def _alignment(self) -> int:
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or not 8 <= align <= MAX_ALIGNMENT or align & (align - 1):
            raise ModelError(f"{self.path.name}: general.alignment must be a power of two from 8 to {MAX_ALIGNMENT}, "
                             f"not {align!r:.40}")
        return align

    def _checked(self, table: list[tuple[str, list[int], int, int]], align: int, data_bytes: int) -> dict[str, Entry]:
        """Names once; offsets aligned, in range, not overlapping."""
        entries: dict[str, Entry] = {}
        for name, dims, number, offset in table:
            if name in entries:
                raise self._error(name, "stands twice")
            kind = self._kind(name, number, dims)
            end = offset + math.prod(dims) // kind.values * kind.nbytes
            if offset % align or end > data_bytes:
                raise self._error(name, f"bytes {offset} to {end} must begin at a multiple of {align} and end within "
                                        f"the {max(data_bytes, 0)} that the file has for tensors")
            entries[name] = Entry(tuple(reversed(dims)), kind, offset, end)
        at = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if entry.begin < at:
                raise self._error(name, f"begins at byte {entry.begin} of the data, the one before ends at {at}")
            at = entry.end
        return entries

    def _kind(self, name: str, number: int, dims: list[int]) -> BlockType:
        kind = TYPES.get(number)
        if kind is None:
            known = ", ".join(t.name for t in TYPES.values())
            raise self._error(name, f"is of type {UNREAD.get(number, number)}, which is not read; {known} are")
        if kind.values > 1 and (dims[0] % kind.values or len(dims) != 2):
            raise self._error(name, f"{kind.name} needs a matrix whose rows are a multiple of {kind.values}, "
                                    f"not {dims[::-1]}")
        return kind

    def _error(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.path.name}: tensor {name!r:.120}: {what}")


def _notes(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    counts = Counter(e.kind.name for e in entries.values() if e.kind.form is not None)
    if not counts:
        return ()
    kept = "GGUF's integers are read without loss: " + ", ".join(f"{n} matrices {name}" for name, n in counts.items())
    rounded = f"{LOSS}kernels without groups of 16 get Q6_K rounded to 8 bits in groups of 32, 2 % more error"
    return (kept, rounded) if "Q6_K" in counts else (kept,)


class _Cursor:
    """A place in the header, and reads that cannot leave it."""

    def __init__(self, file: str, data: memoryview, size: int):
        self.file, self.data, self.size, self.at = file, data, size, 0

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.data) - self.at:
            where = "the file" if len(self.data) == self.size else f"the {MAX_HEADER_BYTES} bytes of a header"
            raise self.error(f"{what} takes {count} bytes at byte {self.at}, {where} ends at {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, dtype: str, what: str) -> Any:
        return np.frombuffer(self.take(int(dtype[2]), what), dtype)[0].item()

    def string(self, what: str) -> str:
        length = self.number("<u8", what)
        if length > MAX_STRING_BYTES:
            raise self.error(f"{what} claims a string of {length} bytes, at most {MAX_STRING_BYTES} are read")
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """A vocabulary in one loop: half a microsecond a string."""
        data, at, out = self.data, self.at, []
        try:
            for _ in range(count):
                end = at + 8 + LENGTH.unpack_from(data, at)[0]
                if end > len(data):
                    raise struct.error
                out.append(str(data[at + 8 : end], "utf-8"))
                at = end
        except struct.error:
            raise self.error(f"{what}: string {len(out)} of {count} at byte {at} ends beyond the header") from None
        except UnicodeDecodeError:
            raise self.error(f"{what}: string {len(out)} is not UTF-8") from None
        self.at = at
        return out

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.file}: {what}")


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """(tensors, metadata pairs), after magic and version."""
    cursor.take(len(MAGIC), "the magic")
    version = cursor.number("<u4", "the version")
    if version not in VERSIONS:
        what = "big-endian" if version in (v << 24 for v in VERSIONS) else f"version {version}"
        raise cursor.error(f"GGUF {what} is not read; little-endian versions 2 and 3 are")
    tensors, pairs = cursor.number("<u8", "the number of tensors"), cursor.number("<u8", "the number of metadata keys")
    for what, count, least in (("tensors", tensors, 24), ("metadata keys", pairs, 13)):
        if count > min(MAX_ENTRIES, cursor.size // least):
            raise cursor.error(f"claims {count} {what}; a file of {cursor.size} bytes has at most "
                               f"{min(MAX_ENTRIES, cursor.size // least)}")
    return tensors, pairs


def _metadata(cursor: _Cursor, pairs: int) -> dict[str, Any]:
    """Python's numbers, strings, lists of strings, and numpy arrays of numbers."""
    out: dict[str, Any] = {}
    for i in range(pairs):
        key = cursor.string(f"metadata key {i}")
        if key in out:
            raise cursor.error(f"metadata key {key!r:.120} stands twice")
        out[key] = _value(cursor, f"metadata {key!r:.120}")
    return out


def _value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.number("<u4", what)
    if kind == STRING:
        return cursor.string(what)
    if kind == ARRAY:
        return _array(cursor, what)
    return cursor.number(_scalar(cursor, kind, what), what)


def _array(cursor: _Cursor, what: str) -> Any:
    kind, count = cursor.number("<u4", what), cursor.number("<u8", what)
    if kind == STRING:
        if count > min(MAX_STRINGS, (len(cursor.data) - cursor.at) // 8):
            raise cursor.error(f"{what} claims {count} strings, more than fit the header or {MAX_STRINGS}")
        return cursor.strings(count, what)
    if kind == ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which is not read")
    dtype = _scalar(cursor, kind, what)
    return np.frombuffer(cursor.take(count * int(dtype[2]), what), dtype)


def _scalar(cursor: _Cursor, kind: int, what: str) -> str:
    if kind not in SCALARS:
        raise cursor.error(f"{what} has the type {kind}; types are 0 to 12")
    return SCALARS[kind]


def _tensor_info(cursor: _Cursor, i: int) -> tuple[str, list[int], int, int]:
    """(name, dimensions with the fastest first, type, offset)."""
    name = cursor.string(f"the name of tensor {i}")
    what = f"tensor {name!r:.120}"
    count = cursor.number("<u4", what)
    if not 1 <= count <= MAX_DIMENSIONS:
        raise cursor.error(f"{what} claims {count} dimensions, there are 1 to {MAX_DIMENSIONS}")
    dims = [cursor.number("<u8", what) for _ in range(count)]
    if 0 in dims:
        raise cursor.error(f"{what} has the empty shape {dims[::-1]}")
    return name, dims, cursor.number("<u4", what), cursor.number("<u8", what)
