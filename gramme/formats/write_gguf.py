"""Writes GGUF files: metadata, tensor table, data. Knows no model.

Format: github.com/ggml-org/ggml, docs/gguf.md, version 3, little-endian; blocks: src/ggml-common.h.
"""
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped

Array = np.ndarray[Any, Any]
ALIGNMENT = 32
BLOCK = 32  # values of a Q4_0 or Q8_0 block
F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
TYPES = {"float32": F32, "float16": F16, "bfloat16": BF16}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

Tensor = Callable[[], Array | Grouped]  # read when it is written: one at a time is in memory


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Values are str, bool, int (uint32), float (float32) or lists of str, int (int32) or float; empty ones are of str.

    Every tensor is asked for twice, for its form and for its bytes. `Grouped` becomes Q4_0 or Q8_0. Atomic: written
    beside, synced, renamed.
    """
    table, at = [], 0
    for name, read in tensors.items():
        shape, kind, nbytes = _form(name, read())
        table.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, at))
        at += _padded(nbytes)
    pairs = [_string(key) + _value(value) for key, value in metadata.items()]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(table), len(pairs)) + b"".join(pairs) + b"".join(table)
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as f:
        f.write(head.ljust(_padded(len(head)), b"\0"))
        for read in tensors.values():
            content = _bytes(read())
            f.write(content.ljust(_padded(len(content)), b"\0"))
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)


def blocks(w: Grouped) -> Array:
    """Q4_0 or Q8_0: (N, K / 32, bytes of a block) uint8. Raises ConfigError when they do not hold it exactly."""
    middle = 1 << (w.bits - 1)
    scales = w.scales.astype(np.float16)
    if w.group != BLOCK or (w.offsets != w.scales * middle).any() or (scales.astype(np.float32) != w.scales).any():
        raise ConfigError(f"GGUF's Q{w.bits}_0 has groups of {BLOCK}, float16 scales and the middle zero point")
    codes = w.codes.reshape(len(w.codes), -1, BLOCK)
    packed = codes[..., :16] | codes[..., 16:] << 4 if w.bits == 4 else codes ^ 128
    return np.concatenate([scales[..., None].view(np.uint8), packed], -1)


def _form(name: str, a: Array | Grouped) -> tuple[tuple[int, ...], int, int]:
    """(shape, type, bytes)"""
    if isinstance(a, Grouped):
        size = 18 if a.bits == 4 else 34
        return a.shape, Q4_0 if a.bits == 4 else Q8_0, a.codes.size // BLOCK * size
    if a.dtype.name not in TYPES:
        raise ConfigError(f"GGUF tensor {name}: {a.dtype} is not written")
    return a.shape, TYPES[a.dtype.name], a.nbytes


def _bytes(a: Array | Grouped) -> bytes:
    return (blocks(a) if isinstance(a, Grouped) else np.ascontiguousarray(a)).tobytes()


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind, body = _array(value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + body
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<I", STRING) + _string(value)


def _array(values: list[Any]) -> tuple[int, bytes]:
    if not values or isinstance(values[0], str):
        return STRING, b"".join(map(_string, values))
    if isinstance(values[0], float):
        return FLOAT32, np.array(values, "<f4").tobytes()
    return INT32, np.array(values, "<i4").tobytes()
