"""The one form to which every integer weight is brought: codes, and a scale and an offset for each group of them.

Knows no file and no kernel. A backend lays it out for its kernels and forgets it.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """What a file says of an integer matrix before it is read."""

    bits: int  # 4 or 8
    group: int  # columns
    offsets: bool  # whether the zero point may be another than the middle code


class Grouped(NamedTuple):
    """A matrix (N, K): w[n, k] = scales[n, k // G] * codes[n, k] - offsets[n, k // G], with G = K / scales.shape[1].

    An offset is a scale times a zero point; a symmetric 4-bit weight has offsets of exactly 8 scales.
    """

    codes: np.ndarray  # (N, K) uint8, below 2**bits
    scales: np.ndarray  # (N, K / G) float32
    offsets: np.ndarray  # (N, K / G) float32
    bits: int  # 4 or 8

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[1])


class Reordered(NamedTuple):
    """A matrix whose groups are not of neighbours (GPTQ's act-order): column order[j] of it stands at j in `stored`."""

    stored: Grouped
    order: np.ndarray  # (K,) int32

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape


def dense(w: Grouped | Reordered) -> np.ndarray:
    """(N, K) float32, rounded once: in float32 throughout, a scale of 18 bits times a code of 8 would round before."""
    if isinstance(w, Reordered):
        return dense(w.stored)[:, np.argsort(w.order)]
    scales, offsets = (np.repeat(a.astype(np.float64), w.group, 1) for a in (w.scales, w.offsets))
    return np.asarray(scales * w.codes - offsets, np.float32)


def rows(w: Grouped, ids: np.ndarray) -> Grouped:
    """The rows of these indices, in their order."""
    return Grouped(w.codes[ids], w.scales[ids], w.offsets[ids], w.bits)


def stack(parts: Sequence[Grouped]) -> Grouped:
    """Matrices of one width below each other, as the widest codes and the smallest group among them say: exact."""
    bits, group = max(w.bits for w in parts), min(w.group for w in parts)
    if any(w.group % group for w in parts):
        raise ValueError(f"groups of {sorted({w.group for w in parts})} have no common form")
    parts = [_widened(w, bits) for w in parts]
    scales, offsets = ([np.repeat(w[i], w.group // group, 1) for w in parts] for i in (1, 2))
    return Grouped(np.concatenate([w.codes for w in parts]), np.concatenate(scales), np.concatenate(offsets), bits)


def stacked_form(forms: Sequence[Form]) -> Form:
    """The form of matrices of these forms below each other."""
    return Form(max(f.bits for f in forms), min(f.group for f in forms), any(f.offsets for f in forms))


def symmetric(w: Grouped) -> bool:
    """Whether every zero point is the middle code."""
    return bool((w.offsets == w.scales * (1 << (w.bits - 1))).all())


def _widened(w: Grouped, bits: int) -> Grouped:
    """The same values in codes of more bits, whose middle stays the middle where it was the zero point."""
    shift = (1 << (bits - 1)) - (1 << (w.bits - 1))
    if not shift or not symmetric(w):
        return w._replace(bits=bits)
    return Grouped(w.codes + np.uint8(shift), w.scales, w.scales * (1 << (bits - 1)), bits)
