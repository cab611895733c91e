"""What happens to heads between their projection and attention: norm, rope, and K and V into their pages, one launch.

`head_norm` and `rope` only note what is to be done, since what they return goes nowhere but into `attend`; `place` does
all of it. A page's values are floats of the page's own type, float8 (E4M3, made and read by integer arithmetic, so that
cards without such instructions have it too), or int8 with one float16 scale a token and head.
"""
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels import eager
from gramme.kernels.cuda.launch import launch, rint
from gramme.kernels.ops import KV

FLOAT, FLOAT8, INT8 = 0, 1, 2  # forms of a page


@dataclass(frozen=True)
class Heads:
    """x (T, H, Dh), to be normed with `gain` unless it is None, then rotated by `table` at `positions` unless None."""

    x: Tensor
    gain: Tensor | None = None
    eps: float = 0.0
    table: Tensor | None = None
    positions: Tensor | None = None

    def made(self) -> Tensor:
        """The same in plain torch, for attention without pages."""
        x = self.x if self.gain is None else eager.head_norm(self.x.float(), self.gain, self.eps).to(self.x.dtype)
        return x if self.table is None else eager.rope(x.float(), self.table, self.positions).to(x.dtype)


def head_norm(x: Tensor, gain: Tensor, eps: float) -> Heads:
    return Heads(x, gain, eps)


def rope(x: Tensor | Heads, table: Tensor, positions: Tensor) -> Heads:
    return replace(x if isinstance(x, Heads) else Heads(x), table=table, positions=positions)


def form_of(kv: KV) -> int:
    return {torch.float8_e4m3fn: FLOAT8, torch.int8: INT8}.get(kv.k.dtype, FLOAT)


def stored(pages: Tensor) -> Tensor:
    """Pages as kernels take them: float8 as bytes."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


@triton.jit
def to_float8(x):
    """float32 -> the bits of E4M3, halves to even, 448 at most; NaN stays NaN. Steps below 2^-6 are 2^-9 wide."""
    a = tl.minimum(tl.abs(x), 448.0)
    bits = a.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = a < 0.015625
    code = tl.where(small, rint(tl.where(small, a, 0.0) * 512.0).to(tl.int32), normal)
    code = tl.where(x != x, 0x7F, code)
    return (code | tl.where(x < 0, 0x80, 0)).to(tl.uint8)


@triton.jit
def from_float8(code):
    """The bits of E4M3 -> float16: the exponent's field moves into place, its bias differs by 8."""
    c = code.to(tl.int16)
    x = (((c & 0x7F) << 7) | ((c & 0x80) << 8)).to(tl.float16, bitcast=True) * 256.0
    return tl.where((c & 0x7F) == 0x7F, float("nan"), x)


@triton.jit
def place_kernel(q, k, v, q_gain, k_gain, table, positions, slots, q_out, k_pages, v_pages, k_scales, v_scales,
                 q_stride, k_stride, v_stride, eps, H: tl.constexpr, HK: tl.constexpr, S: tl.constexpr,
                 DH: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, FORM: tl.constexpr):
    """One program a token and head of q, then k, then v. A head is held as its two halves, which rope mixes."""
    t, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HALF)
    inside = i < DH // 2
    is_q, is_v = head < H, head >= H + HK
    source = q + t * q_stride + head * DH
    if head >= H:
        source = k + t * k_stride + (head - H) * DH
    if is_v:
        source = v + t * v_stride + (head - H - HK) * DH
    a = tl.load(source + i, mask=inside, other=0).to(tl.float32)
    b = tl.load(source + DH // 2 + i, mask=inside, other=0).to(tl.float32)
    if NORM and head < H + HK:
        gain = q_gain
        if head >= H:
            gain = k_gain
        scale = 1 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / DH + eps)
        a *= scale * tl.load(gain + i, mask=inside, other=0)
        b *= scale * tl.load(gain + DH // 2 + i, mask=inside, other=0)
    if ROPE and head < H + HK:
        angle = table + tl.load(positions + t).to(tl.int64) * DH + i
        cos, sin = tl.load(angle, mask=inside, other=0), tl.load(angle + DH // 2, mask=inside, other=0)
        a, b = a * cos - b * sin, b * cos + a * sin
    if is_q:
        tl.store(q_out + (t * H + head) * DH + i, a, mask=inside)
        tl.store(q_out + (t * H + head) * DH + DH // 2 + i, b, mask=inside)
    elif is_v:
        _store_head(a, b, v_pages, v_scales, tl.load(slots + t), head - H - HK, i, inside, HK, S, DH, FORM)
    else:
        _store_head(a, b, k_pages, k_scales, tl.load(slots + t), head - H, i, inside, HK, S, DH, FORM)


@triton.jit
def _store_head(a, b, pages, scales, slot, head, i, inside, HK: tl.constexpr, S: tl.constexpr, DH: tl.constexpr,
                FORM: tl.constexpr):
    """int8: scale = float16(largest / 127), value = round(x / scale), at most 127 in size."""
    place = ((slot // S).to(tl.int64) * HK + head) * S + slot % S
    if FORM == 1:
        a, b = to_float8(a), to_float8(b)
    if FORM == 2:
        largest = tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0))
        scale = (largest * (1.0 / 127)).to(tl.float16)
        inverse = 1.0 / tl.where(scale > 0, scale.to(tl.float32), float("inf"))
        a = tl.minimum(tl.maximum(rint(a * inverse), -127.0), 127.0).to(tl.int8)
        b = tl.minimum(tl.maximum(rint(b * inverse), -127.0), 127.0).to(tl.int8)
        tl.store(scales + place, scale)
    tl.store(pages + place * DH + i, a, mask=inside)
    tl.store(pages + place * DH + DH // 2 + i, b, mask=inside)


def place(q: Heads, k: Heads, v: Tensor, kv: KV, slots: Tensor) -> Tensor:
    """Writes k and v (T, Hk, Dh) to their pages and returns q (T, H, Dh), contiguous."""
    tokens, heads, head_dim = q.x.shape
    kv_heads, size = kv.k.shape[1:3]
    out = torch.empty(tokens, heads, head_dim, dtype=q.x.dtype, device=q.x.device)
    launch(place_kernel, (tokens, heads + 2 * kv_heads), q.x, k.x, v, q.gain, k.gain, q.table, q.positions, slots, out,
           stored(kv.k), stored(kv.v), kv.k_scale, kv.v_scale, q.x.stride(0), k.x.stride(0), v.stride(0), q.eps,
           heads, kv_heads, size, head_dim, triton.next_power_of_2(head_dim // 2), q.gain is not None,
           q.table is not None, form_of(kv), num_warps=1)
    return out
