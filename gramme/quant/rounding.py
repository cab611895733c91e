"""Rounds a float matrix to the nearest codes, group by group: the plainest quantisation, and the yardstick of others.

Knows no calibration data.
"""
import numpy as np

from gramme.formats.grouped import Grouped

BLOCK_ROWS = 1024  # rounded at once, so that a large matrix is not held several times over


def round_to_nearest(w: np.ndarray, bits: int, group: int) -> Grouped:
    """Symmetric: the value of largest magnitude in a group is the most negative code, as in GGUF's Q4_0 and Q8_0.

    w (N, K) with K a multiple of `group`. Raises ValueError when it is not.
    """
    if w.shape[1] % group:
        raise ValueError(f"{w.shape[1]} columns are no multiple of groups of {group}")
    blocks = [_round(w[i : i + BLOCK_ROWS], bits, group) for i in range(0, len(w), BLOCK_ROWS)]
    codes, scales = (np.concatenate(parts) for parts in zip(*blocks))
    return Grouped(codes, scales, (1 << (bits - 1)) * scales, bits)


def _round(w: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    half = 1 << (bits - 1)
    parts = w.reshape(len(w), -1, group).astype(np.float32, copy=False)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)
    scales = (largest / np.float32(-half)).astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scales != 0, np.rint(parts / scales) + half, half)
    return np.clip(codes, 0, 2 * half - 1).astype(np.uint8).reshape(w.shape), scales[..., 0]
