"""Matrix products with float, 4-bit and 8-bit weights in one Triton kernel, and its two regimes.

Few tokens: the time is that of reading the weight, so the columns are split among programs (split-K, arXiv 2402.00025)
until every multiprocessor has some; a tile's last program to finish adds the parts up, in order. Many: large tiles, no
split; or the weight is made dense piece by piece for the library's product (`dense_product`). gate_up takes
the gate's and the up projection's rows in one program and answers silu(gate) * up, in the form that `down` wants.

4-bit codes become (code - 8) / 8 by setting the bits of a float's fraction, exactly; the scale is applied once a group,
in float32. Sums over a group are thus bounded by 128 times the largest activation: with float16 accumulators (HALF, at
twice the rate on GeForce cards) nothing overflows while the mean of |x| over each group stays below 65504 / 128 = 511.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.act import Act, group_of, new_act, parts, store_floats, store_integers
from gramme.kernels.cuda.launch import WIDEN, arrived_last, calls, launch, mma
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
def _group_values(values, group, rows, n, inside):
    """Scales or offsets of one group of rows n, as float32; 0 where there are none."""
    found = 0.0
    if values is not None:
        found = tl.load(values + group * rows + n, mask=inside, other=0).to(tl.float32)
    return found


@triton.jit
def _add_block(acc, xa, xb, x_scale, x_sum, codes, scale, offset, n, inside, step, rows, K, dtype: tl.constexpr,
               BITS: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr, OFFSETS: tl.constexpr, HALF: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """acc + the product of STEP columns: those from step * STEP on."""
    if BITS == 16:
        k = step * STEP + tl.arange(0, STEP)
        w = tl.load(codes + n.to(tl.int64)[None, :] * K + k[:, None], mask=inside[None, :] & (k[:, None] < K), other=0)
        if HALF:
            acc += tl.dot(xa, w, out_dtype=tl.float16).to(tl.float32)
        else:
            acc = mma(xa, w, acc)
    else:
        block = step * STEP // P
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
        else:  # the remainder is written so that the compiler sees that it is a multiple of 16: loads of 16 bytes
            k = step * STEP - block * P + tl.arange(0, STEP)
            w = tl.load(row + k[:, None], mask=inside[None, :], other=0)
            acc += tl.dot(xa, w).to(tl.float32) * x_scale[:, None] * scale[None, :]
        if OFFSETS:
            acc -= x_sum[:, None] * offset[None, :]
    return acc


@triton.jit(do_not_specialize=["tokens", "N", "splits"])
def matmul_kernel(x, x_scales, x_sums, codes, scales, offsets, bias, out, out_scales, out_sums, places, partial, locks,
                  tokens, N, K, rows, splits, dtype: tl.constexpr, BITS: tl.constexpr, P: tl.constexpr,
                  STEP: tl.constexpr, G: tl.constexpr, GATED: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, OUT_G: tl.constexpr):
    """Grid (tiles, splits), tiles of the same columns of the weight beside each other. N is the width of `out`.

    With few tokens a group's scales are loaded one step before they are used: what no dot product takes, the compiler
    does not fetch ahead by itself. Tiles of many tokens have no registers for that, and other work meanwhile."""
    OFFSETS: tl.constexpr = offsets is not None
    AHEAD: tl.constexpr = BLOCK_M < 64
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
    first, last = split * each, tl.minimum(split * each + each, steps)
    scale = _group_values(scales, first * STEP // G, rows, n, n_inside)
    offset = _group_values(offsets, first * STEP // G, rows, n, n_inside)
    scale2, offset2 = scale, offset
    if GATED:
        scale2 = _group_values(scales, first * STEP // G, rows, N + n, n_inside)
        offset2 = _group_values(offsets, first * STEP // G, rows, N + n, n_inside)
    for step in range(first, last):
        group = (tl.minimum(step + 1, last - 1) if AHEAD else step) * STEP // G
        next_scale = _group_values(scales, group, rows, n, n_inside)
        next_offset = _group_values(offsets, group, rows, n, n_inside)
        if not AHEAD:
            scale, offset = next_scale, next_offset
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
        acc = _add_block(acc, xa, xb, x_scale, x_sum, codes, scale, offset, n, n_inside, step, rows, K, dtype, BITS, P,
                         STEP, OFFSETS, HALF, BLOCK_M, BLOCK_N)
        scale, offset = next_scale, next_offset
        if GATED:
            next_scale = _group_values(scales, group, rows, N + n, n_inside)
            next_offset = _group_values(offsets, group, rows, N + n, n_inside)
            if not AHEAD:
                scale2, offset2 = next_scale, next_offset
            acc2 = _add_block(acc2, xa, xb, x_scale, x_sum, codes, scale2, offset2, N + n, n_inside, step, rows, K,
                              dtype, BITS, P, STEP, OFFSETS, HALF, BLOCK_M, BLOCK_N)
            scale2, offset2 = next_scale, next_offset
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
    if bias is not None:
        acc += tl.load(bias + n, mask=n_inside, other=0)[None, :]
        if GATED:
            acc2 += tl.load(bias + N + n, mask=n_inside, other=0)[None, :]
    if GATED:
        acc = acc / (1 + tl.exp(-acc)) * acc2
    row = m.to(tl.int64)
    if OUT_G == 0:
        store_floats(acc, row, n[None, :], m_inside[:, None] & n_inside[None, :], out, places, N)
    else:
        store_integers(acc, row, tile // tiles_m * BLOCK_N, m_inside, out, out_scales, out_sums, N, BLOCK_M, BLOCK_N,
                       OUT_G)


def tile_product(x: Act, w: Tensor | Packed, bias: Tensor | None, gated: bool, tile: Tile, half: bool, scratch: Tensor,
                 locks: Tensor, form: str = "float", places: Tensor | None = None) -> Act:
    """x (T, K) times w (N, K), or with `gated` silu of its first half times its second, cut as `tile` says.

    As many tokens at a time as have room for their parts in `scratch`: a row's result does not depend on it.
    """
    values, x_scales, _ = parts(x)
    tokens, k = values.shape
    integers, dtype = isinstance(w, Packed), x.dtype
    n = (w.rows if integers else len(w)) // (2 if gated else 1)
    codes, scales, offsets, _, bits = w if integers else (w, None, None, len(w), 16)
    block = w.block if integers else FLOAT_BLOCK_K
    step = k // x_scales.shape[1] if bits == 8 else block
    out = new_act((tokens, n), dtype, values.device, form)
    most = tokens
    if tile.splits > 1:
        tiles = min(scratch.numel() // (tile.splits * tile.m * tile.n * (2 if gated else 1)), locks.numel())
        most = tiles // -(-n // tile.n) * tile.m
    for first in range(0, tokens, most):
        some = slice(first, min(first + most, tokens))
        grid = (-(-(some.stop - first) // tile.m) * -(-n // tile.n), tile.splits)
        launch(matmul_kernel, grid, *parts(x, some), codes, scales, offsets, bias, *parts(out, some), places, scratch,
               locks, some.stop - first, n, k, codes.shape[1] if integers else len(w), tile.splits, TYPES[dtype], bits,
               block, step, w.group if integers else step, gated, half, tile.m, tile.n, group_of(form),
               num_warps=tile.warps, num_stages=tile.stages)
    return out


TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit(do_not_specialize=["first", "count"])
def rows_kernel(codes, scales, offsets, ids, out, first, count, rows, K, BITS: tl.constexpr, P: tl.constexpr,
                G: tl.constexpr, BLOCK_N: tl.constexpr):
    """`count` rows of an integer weight as floats, those from `first` on or of these ids; grid (row tiles, blocks)."""
    block = tl.program_id(1)
    r = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (r < count)[:, None]
    n = first + r
    if ids is not None:
        n = tl.load(ids + r, mask=r < count, other=0)
    group = block * P // G
    scale = tl.load(scales + group * rows + n, mask=r < count, other=0).to(tl.float32)[:, None]
    offset = 0.0
    if offsets is not None:
        offset = tl.load(offsets + group * rows + n, mask=r < count, other=0).to(tl.float32)[:, None]
    row = codes + (block.to(tl.int64) * rows + n)[:, None] * (P * BITS // 8)
    j = tl.arange(0, P * BITS // 8)[None, :]
    at = out + r.to(tl.int64)[:, None] * K + block * P + j
    w = tl.load(row + j, mask=inside, other=0)
    if BITS == 4:
        tl.store(at, ((w & 15).to(tl.float32) - 8) * scale - offset, mask=inside)
        tl.store(at + P // 2, ((w >> 4).to(tl.float32) - 8) * scale - offset, mask=inside)
    else:
        tl.store(at, w.to(tl.float32) * scale - offset, mask=inside)


def float_rows(w: Packed, out: Tensor, ids: Tensor | None = None, first: int = 0) -> None:
    """Writes rows `ids`, or those from `first` on, to out (R, K)."""
    count = len(out)
    launch(rows_kernel, (-(-count // 16), len(w.codes)), w.codes, w.scales, w.offsets, ids, out, first, count,
           w.codes.shape[1], w.columns, w.bits, w.block, w.group, 16, num_warps=4)


def dense_product(x: Tensor, w: Packed, bias: Tensor | None, scratch: Tensor) -> Tensor:
    """x (T, K) times a 4-bit w (N, K): pieces of w are made dense in `scratch`, small enough to stay in the cache, and
    multiplied by the library."""
    n, k = w.rows, w.columns
    out = torch.empty(len(x), n, dtype=x.dtype, device=x.device)
    piece = max(scratch.nbytes // (k * x.itemsize) // 16 * 16, 16)  # what is written starts on 16 bytes
    for first in range(0, n, piece):
        count = min(piece, n - first)
        dense = scratch.view(x.dtype)[: count * k].view(-1, k)
        float_rows(w, dense, first=first)
        calls["linear"] += 1
        torch.mm(x, dense.T, out=out[:, first : first + count])
    return out if bias is None else out.add_(bias)
