"""GGUF's tensor types: how many values a block has, how many bytes, and what they say. Knows no file.

Layouts: github.com/ggml-org/ggml, src/ggml-common.h. Every integer type becomes `Grouped` without loss: types of 5 and
6 bits take codes of 8, shifted so that a symmetric type has 128 for its zero.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gramme.formats.grouped import Form, Grouped

Array = np.ndarray[Any, Any]


class BlockType(NamedTuple):
    name: str
    values: int  # of one block
    nbytes: int  # of one block
    read: Callable[[Array], Array | Grouped]  # raw uint8 (N, K / values, nbytes) -> (N, K)
    form: Form | None = None  # of what is read; None: floats


def _plain(name: str, dtype: Any) -> BlockType:
    size = np.dtype(dtype).itemsize
    return BlockType(name, 1, size, lambda raw: raw.reshape(len(raw), -1).view(dtype))


def _half(raw: Array) -> Array:
    """(..., 2) bytes -> (...,) float32."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def _nibbles(raw: Array) -> Array:
    """(..., n) bytes -> (..., 2n): the low halves of all, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], -1)


def _bit(raw: Array, bits: Array) -> Array:
    """(..., n) bytes -> (..., len(bits), n): the given bits of each byte."""
    return np.asarray(raw[..., None, :] >> bits[:, None].astype(np.uint8) & np.uint8(1), np.uint8)


def _grouped(codes: Array, scales: Array, offsets: Array, bits: int) -> Grouped:
    """A group of scale 0, which is one value, becomes code 0 and zero point 1: kernels keep offsets in scales."""
    rows, flat = len(codes), (scales == 0) & (offsets != 0)
    if flat.any():
        codes = np.where(flat.reshape(-1, 1), 0, codes.reshape(flat.size, -1)).astype(np.uint8)
        scales = np.where(flat, offsets, scales)
    return Grouped(codes.reshape(rows, -1), scales.reshape(rows, -1), offsets.reshape(rows, -1), bits)


def _q8_0(raw: Array) -> Grouped:
    d = _half(raw[..., :2])
    return _grouped(raw[..., 2:] ^ 128, d, 128 * d, 8)  # two's complement plus 128


def _q4_0(raw: Array) -> Grouped:
    d = _half(raw[..., :2])
    return _grouped(_nibbles(raw[..., 2:]), d, 8 * d, 4)


def _q4_1(raw: Array) -> Grouped:
    return _grouped(_nibbles(raw[..., 4:]), _half(raw[..., :2]), -_half(raw[..., 2:4]), 4)


def _fives(high: Array, low: Array) -> Array:
    """32 codes of 5 bits from 4 bytes of fifth bits, in order, and 16 of nibbles."""
    codes: Array = _nibbles(low) | np.unpackbits(high, axis=-1, bitorder="little") << 4
    return codes


def _q5_0(raw: Array) -> Grouped:
    d = _half(raw[..., :2])
    return _grouped(_fives(raw[..., 2:6], raw[..., 6:]) + np.uint8(128 - 16), d, 128 * d, 8)


def _q5_1(raw: Array) -> Grouped:
    return _grouped(_fives(raw[..., 4:8], raw[..., 8:]), _half(raw[..., :2]), -_half(raw[..., 2:4]), 8)


def _k_scales(raw: Array) -> tuple[Array, Array]:
    """The 16 bytes that begin a Q4_K or Q5_K block -> scales, offsets (..., 8), one for each 32 values.

    After two float16 come eight scales and eight minima of 6 bits: the first four of each in bytes 0-3 and 4-7; of the
    others the low halves share bytes 8-11 and the two high bits stand above the first four.
    """
    a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], -1)
    minima = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], -1)
    return _half(raw[..., :2])[..., None] * scales, _half(raw[..., 2:4])[..., None] * minima


def _k_nibbles(raw: Array) -> Array:
    """128 bytes -> (..., 4, 64): each 32 bytes hold 32 values in their low halves and the next 32 in the high ones."""
    return _nibbles(raw.reshape(*raw.shape[:-1], 4, 32))


def _q4_k(raw: Array) -> Grouped:
    return _grouped(_k_nibbles(raw[..., 16:]), *_k_scales(raw), 4)


def _q5_k(raw: Array) -> Grouped:
    fifth = _bit(raw[..., 16:48], np.arange(8))  # bit j of byte i belongs to value 32 j + i
    low = _k_nibbles(raw[..., 48:])
    return _grouped(low | fifth.reshape(low.shape) << 4, *_k_scales(raw), 8)


def _q6_k(raw: Array) -> Grouped:
    """Each half of the block, 128 values: 64 bytes of low nibbles, 32 bytes of two high bits; a scale for 16 values."""
    low = _nibbles(raw[..., :128].reshape(*raw.shape[:-1], 2, 64))
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 32)
    high = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    scales = _half(raw[..., 208:])[..., None] * raw[..., 192:208].view(np.int8)
    return _grouped((low | high << 4) + np.uint8(128 - 32), scales, 128 * scales, 8)


TYPES = {
    0: _plain("F32", np.float32), 1: _plain("F16", np.float16), 30: _plain("BF16", ml_dtypes.bfloat16),
    2: BlockType("Q4_0", 32, 18, _q4_0, Form(4, 32, False)), 3: BlockType("Q4_1", 32, 20, _q4_1, Form(4, 32, True)),
    6: BlockType("Q5_0", 32, 22, _q5_0, Form(8, 32, False)), 7: BlockType("Q5_1", 32, 24, _q5_1, Form(8, 32, True)),
    8: BlockType("Q8_0", 32, 34, _q8_0, Form(8, 32, False)), 12: BlockType("Q4_K", 256, 144, _q4_k, Form(4, 32, True)),
    13: BlockType("Q5_K", 256, 176, _q5_k, Form(8, 32, True)),
    14: BlockType("Q6_K", 256, 210, _q6_k, Form(8, 16, False)),
}
UNREAD = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}
