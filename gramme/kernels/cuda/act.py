"""What goes into a product, as kernels write it: floats, or integers with a scale and a sum for each group of columns.

Knows no kernel: norms, attention and products end with the functions here, so that no launch only changes a form.
"""
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.launch import rint
from gramme.kernels.ops import Permuted


class Quantised(NamedTuple):
    """`ops.Quantised` and the type of the floats that it stands for, in which a matmul answers."""

    values: Tensor  # (T, K) int8
    scales: Tensor  # (T, K / G) float32
    sums: Tensor  # (T, K / G) float32
    dtype: torch.dtype


Act = Tensor | Quantised
Parts = tuple[Tensor, Tensor | None, Tensor | None]  # values, scales and sums as kernels take them


def new_act(shape: tuple[int, int], dtype: torch.dtype, device: torch.device, act: str) -> Act:
    if act == "float":
        return torch.empty(shape, dtype=dtype, device=device)
    tokens, k = shape
    scales, sums = torch.empty(2, tokens, k // group_of(act), device=device)
    return Quantised(torch.empty(shape, dtype=torch.int8, device=device), scales, sums, dtype)


def parts(x: Act, rows: slice = slice(None)) -> Parts:
    """The arrays of those rows."""
    return tuple(a[rows] for a in x[:3]) if isinstance(x, Quantised) else (x[rows], None, None)


def group_of(act: str) -> int:
    """Columns that share a scale; 0: floats."""
    return 0 if act == "float" else int(act.removeprefix("int8/"))


def passing(act: str | Permuted, columns: int) -> tuple[str, Tensor | None] | None:
    """(form, places) in which a kernel can write that holds so many columns of a row; None: it writes floats, and
    `quantise` does the rest."""
    if isinstance(act, Permuted):
        return ("float", act.places) if act.act == "float" else None
    return (act, None) if act == "float" or columns % group_of(act) == 0 else None


@triton.jit
def store_floats(h, row, k, mask, out, places, K):
    """h (M, N): columns k (M or 1, N) of rows `row` (M,), int64, of an activation (T, K)."""
    if places is not None:
        k = tl.load(places + k, mask=mask, other=0)
    tl.store(out + row[:, None] * K + k, h, mask=mask)


@triton.jit
def store_integers(h, row, first, inside, out, scales, sums, K, M: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    """h (M, N) float32: whole groups, columns `first` and on of rows `row` (M,), int64, of those that are `inside`."""
    groups = tl.reshape(h, (M, N // G, G))
    largest = tl.max(tl.abs(groups), 2)
    values = rint(groups * (127.0 / tl.where(largest > 0, largest, 1.0))[:, :, None])
    scale = largest * (1.0 / 127)
    k, g = first + tl.arange(0, N), first // G + tl.arange(0, N // G)
    mask = inside[:, None] & (k < K)[None, :]
    tl.store(out + row[:, None] * K + k[None, :], tl.reshape(values, (M, N)).to(tl.int8), mask=mask)
    at, mask = row[:, None] * (K // G) + g[None, :], inside[:, None] & (g * G < K)[None, :]
    tl.store(scales + at, scale, mask=mask)
    tl.store(sums + at, scale * tl.sum(values, 2), mask=mask)
