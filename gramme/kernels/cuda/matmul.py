"""Matrix products with float, 4-bit and 8-bit weights in one Triton kernel, and its two regimes.

Few tokens: the time is that of reading the weight, so the columns are split among programs (split-K, arXiv 2402.00025)
until every multiprocessor has some; a tile's last program to finish adds the parts up, in order. Many: large tiles, no
split; or the weight is made dense piece by piece for the library's product (`dense_product`). gate_up takes
the gate's and the up projection's rows in one program and answers silu(gate) * up.

4-bit codes become (code - 8) / 8 by setting the bits of a float's fraction, exactly; the scale is applied once a group,
in float32. Sums over a group are thus bounded by 128 times the largest activation: with float16 accumulators (HALF, at
twice the rate on GeForce cards) nothing overflows while the mean of |x| over each group stays below 65504 / 128 = 511.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.launch import WIDEN, arrived_last, calls, launch, mma
from gramme.kernels.cuda.norm import Quantised
from gramme.kernels.cuda.packing import Packed
from gramme.plan.gpu_memory import Tile

FLOAT_BLOCK_K = 64  # columns of a step where the weight is of floats


@triton.jit
def _eighths(code, dtype: tl.constexpr):
    """A code of 0 to 15 as (code - 8) / 8. The fraction's last bit is 1/8 in float16 at 128, in bfloat16 at 16."""
    if dtype == tl.float16:
        return (code.to(tl.int16) | 0x5800).to(tl.float16, bitcast=True) - 129.0
    elif dtype == tl.bfloat16 and not WIDEN:
        return (code.to(tl.int16) | 0x4180).to(tl.bfloat16, bitcast=True) - 17.0
    else:
        return (code.to(tl.float32) - 8) * 0.125


@triton.jit
def _add_block(acc, xa, xb, x_scale, x_sum, codes, scales, offsets, n, inside, block, step, rows, K,
               dtype: tl.constexpr, BITS: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr, G: tl.constexpr,
               OFFSETS: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """acc + the product of STEP columns: those from step * STEP on, of which `block` is the packed block."""
    if BITS == 16:
        k = step * STEP + tl.arange(0, STEP)
        w = tl.load(codes + n.to(tl.int64)[None, :] * K + k[:, None], mask=inside[None, :] & (k[:, None] < K), other=0)
        if HALF:
            acc += tl.dot(xa, w, out_dtype=tl.float16).to(tl.float32)
        else:
            acc = mma(xa, w, acc)
    else:
        group = step * STEP // G
        scale = tl.load(scales + group * rows + n, mask=inside, other=0).to(tl.float32)
        row = codes + (block.to(tl.int64) * rows + n)[None, :] * (P * BITS // 8)
        if BITS == 4:
            w = tl.load(row + tl.arange(0, P // 2)[:, None], mask=inside[None, :], other=0)
            low, high = _eighths(w & 15, dtype), _eighths(w >> 4, dtype)
            if HALF:
                part = tl.dot(xa, low, out_dtype=tl.float16)
                part = tl.dot(xb, high, part, out_dtype=tl.float16).to(tl.float32)
            else:
                part = mma(xb, high, mma(xa, low, tl.zeros((BLOCK_M, BLOCK_N), tl.float32)))
            acc += part * (scale * 8)[None, :]
        else:
            w = tl.load(row + (step * STEP % P + tl.arange(0, STEP))[:, None], mask=inside[None, :], other=0)
            acc += tl.dot(xa, w).to(tl.float32) * x_scale[:, None] * scale[None, :]
        if OFFSETS:
            offset = tl.load(offsets + group * rows + n, mask=inside, other=0).to(tl.float32)
            acc -= x_sum[:, None] * offset[None, :]
    return acc


@triton.jit(do_not_specialize=["tokens", "N", "splits"])
def matmul_kernel(x, x_scales, x_sums, codes, scales, offsets, bias, out, partial, locks, tokens, N, K, rows, splits,
                  dtype: tl.constexpr, BITS: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr, G: tl.constexpr,
                  OFFSETS: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, HALF: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Grid (tiles, splits), tiles of the same columns of the weight beside each other. N is the width of `out`."""
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    tile, split = tl.program_id(0), tl.program_id(1)
    m = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside, n_inside = m < tokens, n < N
    at = x + m.to(tl.int64)[:, None] * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc2 = acc
    steps = tl.cdiv(K, STEP)
    each = tl.cdiv(steps, splits)
    for step in range(split * each, tl.minimum(split * each + each, steps)):
        block = step * STEP // P
        xb, x_scale, x_sum = 0, 0, 0
        if BITS == 4:
            k = step * STEP + tl.arange(0, P // 2)
            xa = tl.load(at + k[None, :], mask=m_inside[:, None], other=0)
            xb = tl.load(at + P // 2 + k[None, :], mask=m_inside[:, None], other=0)
            if OFFSETS:
                x_sum = tl.sum(xa.to(tl.float32), 1) + tl.sum(xb.to(tl.float32), 1)
        else:
            k = step * STEP + tl.arange(0, STEP)
            xa = tl.load(at + k[None, :], mask=m_inside[:, None] & (k[None, :] < K), other=0)
        if BITS == 8:
            x_scale = tl.load(x_scales + m * steps + step, mask=m_inside, other=0)
            if OFFSETS:
                x_sum = tl.load(x_sums + m * steps + step, mask=m_inside, other=0)
        acc = _add_block(acc, xa, xb, x_scale, x_sum, codes, scales, offsets, n, n_inside, block, step, rows, K, dtype,
                         BITS, P, STEP, G, OFFSETS, HALF, BLOCK_M, BLOCK_N)
        if GATED:
            acc2 = _add_block(acc2, xa, xb, x_scale, x_sum, codes, scales, offsets, N + n, n_inside, block, step, rows,
                              K, dtype, BITS, P, STEP, G, OFFSETS, HALF, BLOCK_M, BLOCK_N)
    if splits > 1:
        size: tl.constexpr = BLOCK_M * BLOCK_N
        inner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mine = partial + (tile * splits + split).to(tl.int64) * size * (1 + GATED) + inner
        tl.store(mine, acc)
        if GATED:
            tl.store(mine + size, acc2)
        if not arrived_last(locks + tile, splits):
            return
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        acc2 = acc
        for i in range(splits):
            other = partial + (tile * splits + i).to(tl.int64) * size * (1 + GATED) + inner
            acc += tl.load(other, cache_modifier=".cg")
            if GATED:
                acc2 += tl.load(other + size, cache_modifier=".cg")
    if BIAS:
        acc += tl.load(bias + n, mask=n_inside, other=0)[None, :]
        if GATED:
            acc2 += tl.load(bias + N + n, mask=n_inside, other=0)[None, :]
    if GATED:
        acc = acc / (1 + tl.exp(-acc)) * acc2
    tl.store(out + m.to(tl.int64)[:, None] * N + n[None, :], acc, mask=m_inside[:, None] & n_inside[None, :])


def tile_product(x: Tensor | Quantised, w: Tensor | Packed, bias: Tensor | None, gated: bool, tile: Tile, half: bool,
                 scratch: Tensor, locks: Tensor) -> Tensor:
    """x (T, K) times w (N, K), or with `gated` silu of its first half times its second, cut as `tile` says.

    As many tokens at a time as have room for their parts in `scratch`: a row's result does not depend on it.
    """
    integers = isinstance(w, Packed)
    values, x_scales, x_sums, dtype = x if isinstance(x, Quantised) else (x, None, None, x.dtype)
    tokens, k = values.shape
    n = (w.rows if integers else len(w)) // (2 if gated else 1)
    tiles = min(scratch.numel() // (tile.splits * tile.m * tile.n * (2 if gated else 1)), locks.numel())
    most = tiles // -(-n // tile.n) * tile.m
    if tile.splits > 1 and tokens > most:
        parts = (_rows(x, slice(first, first + most)) for first in range(0, tokens, most))
        return torch.cat([tile_product(part, w, bias, gated, tile, half, scratch, locks) for part in parts])
    codes, scales, offsets, rows, bits = w if integers else (w, None, None, len(w), 16)
    block = w.block if integers else 0
    step = k // x_scales.shape[1] if bits == 8 else block or FLOAT_BLOCK_K
    out = torch.empty(tokens, n, dtype=dtype, device=values.device)
    grid = (-(-tokens // tile.m) * -(-n // tile.n), tile.splits)
    launch(matmul_kernel, grid, values, x_scales, x_sums, codes, scales, offsets, bias, out, scratch, locks, tokens, n,
           k, codes.shape[1] if integers else rows, tile.splits, TYPES[dtype], bits, block or step, step,
           w.group if integers else step, offsets is not None, bias is not None, gated, half, tile.m, tile.n,
           num_warps=tile.warps, num_stages=tile.stages)
    return out


def _rows(x: Tensor | Quantised, rows: slice) -> Tensor | Quantised:
    return Quantised(*(a[rows] for a in x[:3]), x.dtype) if isinstance(x, Quantised) else x[rows]


TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def dense_kernel(codes, scales, offsets, out, first, rows, K, P: tl.constexpr, G: tl.constexpr, OFFSETS: tl.constexpr,
                 BLOCK_N: tl.constexpr):
    """Rows first + program * BLOCK_N and on of a 4-bit weight as floats; grid (row tiles, packed blocks)."""
    tile, block = tl.program_id(0), tl.program_id(1)
    r = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    n = first + r
    inside = n < rows
    j = tl.arange(0, P // 2)
    w = tl.load(codes + (block.to(tl.int64) * rows + n)[:, None] * (P // 2) + j[None, :], mask=inside[:, None], other=0)
    group = block * P // G
    scale = tl.load(scales + group * rows + n, mask=inside, other=0).to(tl.float32)[:, None]
    offset = 0.0
    if OFFSETS:
        offset = tl.load(offsets + group * rows + n, mask=inside, other=0).to(tl.float32)[:, None]
    at = out + r.to(tl.int64)[:, None] * K + block * P + j[None, :]
    tl.store(at, ((w & 15).to(tl.float32) - 8) * scale - offset, mask=inside[:, None])
    tl.store(at + P // 2, ((w >> 4).to(tl.float32) - 8) * scale - offset, mask=inside[:, None])


def dense_product(x: Tensor, w: Packed, bias: Tensor | None, scratch: Tensor) -> Tensor:
    """x (T, K) times a 4-bit w (N, K): pieces of w are made dense in `scratch`, small enough to stay in the cache, and
    multiplied by the library."""
    n, k = w.rows, w.columns
    out = torch.empty(len(x), n, dtype=x.dtype, device=x.device)
    piece = max(scratch.nbytes // (k * x.itemsize) // 16 * 16, 16)
    for first in range(0, n, piece):
        count = min(piece, n - first)
        dense = scratch.view(x.dtype)[: -(-count // 16) * 16 * k].view(-1, k)
        launch(dense_kernel, (len(dense) // 16, len(w.codes)), w.codes, w.scales, w.offsets, dense, first,
               w.codes.shape[1], k, w.block, w.group, w.offsets is not None, 16, num_warps=4)
        calls["linear"] += 1
        torch.mm(x, dense[:count].T, out=out[:, first : first + count])
    return out if bias is None else out.add_(bias)
