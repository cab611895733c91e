"""Writes a grouped matrix as the tensors of compressed-tensors, GPTQ and AWQ files. Knows no model and no config.

Layouts: vllm-project/compressed-tensors, compressors/pack_quantized; ModelCloud/GPTQModel, nn_modules/qlinear;
casper-hansen/AutoAWQ, utils/packing_utils.py. All put their first code into the lowest bits of an int32 word.
"""
from typing import Any

import numpy as np

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped

Array = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 neighbours stands at each place of a word


def compressed_tensors(w: Grouped, scale_dtype: Any) -> dict[str, Array]:
    """pack-quantized, symmetric: suffix -> tensor. Raises ConfigError when the zero points are not the middle."""
    _check_symmetric(w, "compressed-tensors")
    return {"weight_packed": pack(w.codes, w.bits), "weight_scale": w.scales.astype(scale_dtype),
            "weight_shape": np.array(w.shape, np.int64)}


def gptq(w: Grouped) -> dict[str, Array]:
    """Format v1, which stores zero points less one; symmetric, because readers disagree about a zero point of 0."""
    _check_symmetric(w, "gptq")
    columns = np.arange(w.shape[1], dtype=np.int32)
    stored = np.full(w.scales.T.shape, (1 << (w.bits - 1)) - 1, np.uint8)
    return {"qweight": np.ascontiguousarray(pack(w.codes, w.bits).T), "qzeros": pack(stored, w.bits),
            "scales": _rows_last(w.scales, np.float16), "g_idx": columns // np.int32(w.group)}


def awq(w: Grouped) -> dict[str, Array]:
    """AutoAWQ's "gemm": 8 rows of the matrix in a word, with zero points as they are."""
    if w.bits != 4:
        raise ConfigError(f"awq files hold 4 bits, not {w.bits}")
    return {"qweight": _interleaved(w.codes), "qzeros": _interleaved(zero_points(w)),
            "scales": _rows_last(w.scales, np.float16)}


def _interleaved(a: Array) -> Array:
    """(N, K) codes of 4 bits -> (K, N / 8) words in AWQ's order."""
    rows = np.ascontiguousarray(a.T)
    return pack(rows.reshape(len(rows), -1, 8)[..., AWQ_ORDER].reshape(rows.shape), 4)


def pack(codes: Array, bits: int) -> Array:
    """(R, n) codes -> (R, n * bits / 32) int32 words."""
    words = codes.reshape(len(codes), -1, 32 // bits).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    packed: Array = np.bitwise_or.reduce(words << shifts, -1).view(np.int32)
    return packed


def zero_points(w: Grouped) -> Array:
    """(N, K / G) uint8; 0 where the scale is."""
    safe = np.where(w.scales == 0, 1, w.scales)
    points: Array = np.rint(np.where(w.scales == 0, 0, w.offsets / safe)).astype(np.uint8)
    return points


def _rows_last(a: Array, dtype: Any) -> Array:
    return np.ascontiguousarray(a.T).astype(dtype)


def _check_symmetric(w: Grouped, name: str) -> None:
    if (w.offsets != w.scales * (1 << (w.bits - 1))).any():
        raise ConfigError(f"{name} files are written symmetric; use awq for zero points")
