"""Reads safetensors files: a checked header, then views of one memory map. Knows no model.

Format: 8 bytes little-endian header length, a JSON object of name -> {dtype, shape, data_offsets}, the data. Everything
that the header claims is checked against the file's size, in integers that do not overflow, before anything is mapped.
"""
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gramme.config import ModelError
from gramme.formats.files import refuse_pickle, regular_size

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32,
    "U64": np.uint64, "BOOL": np.bool_, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}
MAX_HEADER_BYTES = 4 << 20  # 30,000 tensors; the worst JSON of that size takes 26 times as much when parsed
MAX_DIMENSIONS = 8


class SafetensorsFile:
    """Raises ModelError, naming the file, the tensor and the numbers, when the file is not what it says."""

    def __init__(self, path: Path):
        self.path = path
        size = regular_size(path)
        with path.open("rb") as f:
            head = f.read(8)
            length = int.from_bytes(head, "little")
            most = min(MAX_HEADER_BYTES, max(size - 8, 0))
            if len(head) < 8 or not 2 <= length <= most:
                refuse_pickle(path, head)  # only now: one header in 32 has a length whose first byte is a pickle's
                raise ModelError(f"{path.name}: the header of a file of {size} bytes has 2 to {most}, not {length}")
            header = _parse(path, f.read(length))
        header.pop("__metadata__", None)
        self._entries = {name: self._entry(name, e) for name, e in header.items()}
        self._check_cover(size - 8 - length)
        self._data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, np.uint8)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][1]

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """A read-only view of the map."""
        dtype, shape, begin, end = self._entries[name]
        view: np.ndarray[Any, Any] = self._data[begin:end].view(dtype).reshape(shape)
        return view

    def _entry(self, name: str, e: Any) -> tuple[Any, tuple[int, ...], int, int]:
        if not isinstance(e, dict) or not {"dtype", "shape", "data_offsets"} <= e.keys():
            raise self._error(name, "its entry needs dtype, shape and data_offsets")
        dtype, shape, offsets = DTYPES.get(str(e["dtype"])), e["shape"], e["data_offsets"]
        if dtype is None:
            raise self._error(name, f"unknown dtype {e['dtype']!r:.20}")
        if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
            raise self._error(name, f"shape {shape!r:.60} is not a list of at most {MAX_DIMENSIONS} sizes")
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._error(name, f"data_offsets {offsets!r:.60} are not [begin, end]")
        need = math.prod(shape) * np.dtype(dtype).itemsize
        if offsets[1] - offsets[0] != need:
            raise self._error(name, f"has {offsets[1] - offsets[0]} bytes, its shape {shape} needs {need}")
        return dtype, tuple(shape), offsets[0], offsets[1]

    def _check_cover(self, data_bytes: int) -> None:
        """No holes, no overlaps, nothing beyond the end, nothing left over."""
        at = 0
        for name, (_, _, begin, end) in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if begin != at:
                raise self._error(name, f"begins at byte {begin} of the data, the one before ends at {at}")
            at = end
        if at != data_bytes:
            raise ModelError(f"{self.path.name}: tensors take {at} bytes, the file has {data_bytes} for them")

    def _error(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.path.name}: tensor {name!r:.120}: {what}")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Atomic: written beside, synced, renamed. Tensors that lie in other files' maps are copied one at a time."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, a in tensors.items():
        header[name] = {"dtype": names[a.dtype], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for a in tensors.values():
            f.write(np.ascontiguousarray(a).tobytes())
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name}: the header is not valid JSON: {error!s:.80}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path.name}: the header is not a JSON object")
    return header


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 62 for x in value)
