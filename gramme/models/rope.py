"""The cosines and sines that rope reads: one table a model, in every stretching that gramme knows.

Sources: arXiv 2104.09864 (rope), 2306.15595 (linear), the Llama 3.1 model card's rule (llama3), 2309.00071 (yarn).
"""
import math

import numpy as np

from gramme.config import Rope


def rope_table(rope: Rope, head_dim: int, positions: int) -> np.ndarray:
    """(positions, head_dim) float32: cosines of the head_dim / 2 angles, then their sines."""
    turning, scale = frequencies(rope, head_dim)
    angles = np.outer(np.arange(positions, dtype=np.float64), turning / np.array(rope.factors or 1.0))
    return (np.concatenate([np.cos(angles), np.sin(angles)], -1) * scale).astype(np.float32)


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """((head_dim / 2,) radians a position, what cosines and sines are multiplied by)."""
    base = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return base / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, base), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, base, head_dim)
    return base, 1.0


def _llama3(rope: Rope, base: np.ndarray) -> np.ndarray:
    """Long wavelengths are divided by factor, short ones kept, those between blended."""
    turns = rope.original_positions * base / (2 * math.pi)  # within the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return (1 - blend) * base / rope.factor + blend * base


def _yarn(rope: Rope, base: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    """Dimensions that turn more than beta_fast times are kept, fewer than beta_slow divided, between them a ramp."""
    dimension = lambda turns: (
        head_dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
    )
    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return base / rope.factor * ramp + base * (1 - ramp), _yarn_scale(rope)


def _yarn_scale(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    scale = lambda m: 0.1 * m * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
