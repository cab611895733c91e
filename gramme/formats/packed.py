"""Integer weights as safetensors checkpoints pack them into words, brought to `Grouped`. Knows no file and no config.

Layouts: AutoGPTQ and GPTQModel (`qweight` packed along K), AutoAWQ "gemm" (packed along N, columns interleaved),
compressed-tensors (packed along K, row by row). A word is an int32 whose least significant bits hold the first code;
sizes: N rows out, K columns in, G groups of columns, p = 32 / bits codes in a word.
"""
from typing import Any

import numpy as np

from gramme.formats.grouped import Grouped, Reordered

Array = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that nibble i of a word belongs to


def codes_of(words: Array, bits: int) -> Array:
    """(..., n) int32 -> (..., n * p) uint8, in the order of the words."""
    if bits == 8:
        return np.ascontiguousarray(words).view(np.uint8)
    pairs = np.ascontiguousarray(words).view(np.uint8)
    return np.stack([pairs & 15, pairs >> 4], -1).reshape(*words.shape[:-1], -1)


def gptq(qweight: Array, qzeros: Array | None, scales: Array, g_idx: Array | None, bits: int, group: int,
         zero_shift: int) -> Grouped | Reordered:
    """qweight (K / p, N), qzeros (G, N / p) holding zero points minus `zero_shift`, None for the middle code; scales
    (G, N); g_idx (K,) the group of each column, None for neighbours."""
    codes = codes_of(qweight.T, bits)
    s = np.ascontiguousarray(scales.T, np.float32)
    zeros: Array | int = 1 << (bits - 1)
    if qzeros is not None:
        zeros = (codes_of(qzeros, bits).T + zero_shift) & ((1 << bits) - 1)
    return _ordered(Grouped(codes, s, s * zeros, bits), g_idx, group)


def awq(qweight: Array, qzeros: Array, scales: Array) -> Grouped:
    """qweight (K, N / 8), qzeros (G, N / 8), scales (G, N)."""
    s = np.ascontiguousarray(scales.T, np.float32)
    return Grouped(_awq_codes(qweight), s, s * _awq_codes(qzeros), 4)


def _awq_codes(words: Array) -> Array:
    """(rows, N / 8) int32 -> (N, rows) uint8."""
    nibbles = codes_of(words, 4).reshape(*words.shape, 8)
    out = np.empty_like(nibbles)
    out[..., AWQ_ORDER] = nibbles
    return np.ascontiguousarray(out.reshape(len(words), -1).T)


def compressed(codes: Array, scales: Array, zeros: Array | None, bits: int,
               g_idx: Array | None = None) -> Grouped | Reordered:
    """codes (N, K) with their sign taken away; scales (N, G), or (1,) for all; zeros alike, None for the middle."""
    shape = len(codes), scales.shape[-1]
    s = np.ascontiguousarray(np.broadcast_to(scales.astype(np.float32), shape))
    offsets = s * (1 << (bits - 1) if zeros is None else np.broadcast_to(zeros, shape))
    return _ordered(Grouped(codes, s, offsets, bits), g_idx, codes.shape[1] // shape[1])


def _ordered(w: Grouped, g_idx: Array | None, group: int) -> Grouped | Reordered:
    """Columns brought together by group. Raises ValueError where the groups are not all of one size."""
    if g_idx is None or np.array_equal(g_idx, np.arange(w.shape[1]) // group):
        return w
    order = np.argsort(g_idx, kind="stable")
    if not np.array_equal(g_idx[order], np.arange(w.shape[1]) // group):
        raise ValueError(f"its groups are not {w.scales.shape[1]} of {group} columns each")
    return Reordered(Grouped(w.codes[:, order], *w[1:]), order.astype(np.int32))
