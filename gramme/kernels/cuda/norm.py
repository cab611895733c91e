"""Norms and activation functions in Triton: one program a token. Knows no weight and no page."""
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.launch import launch, rint
from gramme.kernels.ops import Permuted


class Quantised(NamedTuple):
    """`ops.Quantised` and the type of the floats that it stands for, in which a matmul answers."""

    values: Tensor  # (T, K) int8
    scales: Tensor  # (T, K / G) float32
    sums: Tensor  # (T, K / G) float32
    dtype: torch.dtype


@triton.jit
def _store_act(h, t, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr, out, scales, sums):
    """Row t of an activation: floats when G is 0, else integers with a scale and a sum for each G values."""
    k = tl.arange(0, BLOCK)
    if G == 0:
        tl.store(out + t * K + k, h, mask=k < K)
    else:
        parts = tl.reshape(h, (BLOCK // G, G))
        largest = tl.max(tl.abs(parts), 1)
        values = rint(parts * (127.0 / tl.where(largest > 0, largest, 1.0))[:, None])
        scale = largest * (1.0 / 127)
        g = tl.arange(0, BLOCK // G)
        tl.store(out + t * K + k, tl.reshape(values, (BLOCK,)).to(tl.int8), mask=k < K)
        tl.store(scales + t * (K // G) + g, scale, mask=g < K // G)
        tl.store(sums + t * (K // G) + g, scale * tl.sum(values, 1), mask=g < K // G)


@triton.jit
def add_norm_kernel(x, r, total, gain, eps, out, scales, sums, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr,
                    ADD: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    h = tl.load(x + t * K + k, mask=k < K, other=0).to(tl.float32)
    if ADD:
        h += tl.load(r + t * K + k, mask=k < K, other=0).to(tl.float32)
        tl.store(total + t * K + k, h, mask=k < K)
    h *= 1 / tl.sqrt(tl.sum(h * h, 0) / K + eps)
    _store_act(h * tl.load(gain + k, mask=k < K, other=0), t, K, BLOCK, G, out, scales, sums)


@triton.jit
def swiglu_kernel(x, out, scales, sums, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    gate = tl.load(x + t * 2 * K + k, mask=k < K, other=0).to(tl.float32)
    up = tl.load(x + t * 2 * K + K + k, mask=k < K, other=0).to(tl.float32)
    _store_act(gate / (1 + tl.exp(-gate)) * up, t, K, BLOCK, G, out, scales, sums)


@triton.jit
def quantise_kernel(x, out, scales, sums, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    h = tl.load(x + t * K + k, mask=k < K, other=0).to(tl.float32)
    _store_act(h, t, K, BLOCK, G, out, scales, sums)


def add_norm(x: Tensor, r: Tensor | None, gain: Tensor, eps: float,
             act: str | Permuted) -> tuple[Tensor | Quantised, Tensor]:
    if isinstance(act, Permuted):
        h, total = add_norm(x, r, gain, eps, "float")
        return quantise(h, act), total
    h, args = _act(x.shape, x.dtype, x.device, act)
    total = x if r is None else torch.empty_like(x)
    launch(add_norm_kernel, (len(x),), x, r, total, gain, eps, *args, r is not None, num_warps=_warps(x.shape[1]))
    return h, total


def quantise(x: Tensor, act: str | Permuted) -> Tensor | Quantised:
    if isinstance(act, Permuted):
        return quantise(x[:, act.order], act.act)
    if act == "float":
        return x
    h, args = _act(x.shape, x.dtype, x.device, act)
    launch(quantise_kernel, (len(x),), x, *args, num_warps=_warps(x.shape[1]))
    return h


def swiglu(x: Tensor, act: str | Permuted) -> Tensor | Quantised:
    """(T, 2F), the gate first -> Act (T, F)."""
    if isinstance(act, Permuted):
        return quantise(swiglu(x, "float"), act)
    h, args = _act((len(x), x.shape[1] // 2), x.dtype, x.device, act)
    launch(swiglu_kernel, (len(x),), x, *args, num_warps=_warps(x.shape[1]))
    return h


def _act(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, act: str) -> tuple:
    """A new activation of that form, and the arguments with which a kernel writes it."""
    tokens, k = shape
    group = 0 if act == "float" else int(act.removeprefix("int8/"))
    block = triton.next_power_of_2(k)
    if not group:
        out = torch.empty(shape, dtype=dtype, device=device)
        return out, (out, out, out, k, block, 0)
    scales, sums = torch.empty(2, tokens, k // group, device=device)
    values = torch.empty(shape, dtype=torch.int8, device=device)
    return Quantised(values, scales, sums, dtype), (values, scales, sums, k, block, group)


def _warps(k: int) -> int:
    return min(max(triton.next_power_of_2(k) // 512, 1), 16)
