"""Attention over pages in Triton: one kernel for prefill chunks, decoding and verification. Knows no step's history.

A block is up to BLOCK_M / (H / Hk) consecutive tokens of one row with all query heads of one KV head, so that K and V
are loaded once for them (GQA packing). A row's keys are cut into splits of whole tiles of BLOCK_N keys, counted from
the context's start; a split yields (largest score, sum of weights, weighted values) as in arXiv 2205.14135, and splits
are merged in order. Splits of one block run side by side (decoding: few blocks, long contexts) and the last of them to
finish merges, or one after another in one program (prefill: many blocks). The result is the same bit for bit.
"""
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.act import Act, group_of, new_act, parts, store_floats, store_integers
from gramme.kernels.cuda.heads import form_of, from_float8, stored
from gramme.kernels.cuda.launch import WIDEN, arrived_last, launch, mma
from gramme.kernels.ops import KV, Step
from gramme.plan.gpu_memory import BLOCK_N, FIXED_TILES, LEAST_TILES, attention_rows, attention_splits, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_tile(pages, scales, place, keys, inside, d, DH: tl.constexpr, FORM: tl.constexpr, DTYPE: tl.constexpr):
    """(BLOCK_N, BLOCK_D) values of K or V, without the scale of int8, and that scale (BLOCK_N,)."""
    tile = tl.load(pages + place[:, None] * DH + d[None, :], mask=inside[:, None] & (d[None, :] < DH), other=0)
    scale = tl.load(scales + place, mask=inside, other=0).to(tl.float32) if FORM == 2 else keys
    if FORM == 1:
        tile = from_float8(tile)
    elif FORM == 2 and WIDEN:  # the interpreter takes an int8 for the bits of a bfloat16
        tile = tile.to(tl.float32)
    return tile.to(DTYPE), scale


@triton.jit
def _attend_split(q, positions, first, last, page_row, kv_head, k_pages, v_pages, k_scales, v_scales, low, high, d,
                  scale, HK: tl.constexpr, S: tl.constexpr, DH: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, FORM: tl.constexpr):
    """Tiles first to last - 1 of one row's keys: the running largest score (base 2), sum and weighted values."""
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    s = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for tile in range(first, last):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (keys >= low) & (keys < high)
        page = tl.load(page_row + keys // S, mask=inside, other=0).to(tl.int64)
        place = (page * HK + kv_head) * S + keys % S
        k, k_scale = _load_tile(k_pages, k_scales, place, keys, inside, d, DH, FORM, q.dtype)
        x = mma(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)) * scale
        if FORM == 2:
            x *= k_scale[None, :]
        seen = inside[None, :] & (keys[None, :] <= positions[:, None])
        if WINDOW > 0:
            seen &= positions[:, None] - keys[None, :] < WINDOW
        x = tl.where(seen, x, float("-inf"))
        largest = tl.maximum(m, tl.max(x, 1))
        base = tl.where(largest == float("-inf"), 0.0, largest)
        p = tl.exp2(x - base[:, None])
        fade = tl.exp2(m - base)
        s = s * fade + tl.sum(p, 1)
        v, v_scale = _load_tile(v_pages, v_scales, place, keys, inside, d, DH, FORM, q.dtype)
        if FORM == 2:
            p *= v_scale[None, :]
        acc = mma(p.to(q.dtype), v, acc * fade[:, None])
        m = largest
    return m, s, acc


@triton.jit
def _merge(m, s, acc, m2, s2, acc2):
    largest = tl.maximum(m, m2)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    fade, fade2 = tl.exp2(m - base), tl.exp2(m2 - base)
    return largest, s * fade + s2 * fade2, acc * fade[:, None] + acc2 * fade2[:, None]


@triton.jit(do_not_specialize=["rows", "page_stride", "split_tiles", "splits"])
def attend_kernel(q, k_pages, v_pages, k_scales, v_scales, starts, lengths, pages, out, out_scales, out_sums, places,
                  partial, locks, rows, page_stride, split_tiles, splits, scale, H: tl.constexpr, HK: tl.constexpr,
                  S: tl.constexpr, DH: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, FORM: tl.constexpr,
                  SHARED: tl.constexpr, FIXED: tl.constexpr, OUT_G: tl.constexpr):
    """Grid (blocks, Hk, splits). Block i belongs to the last row b with starts[b] // tokens + b <= i: rows of any
    lengths, known only to the device, fit into T // tokens + B blocks; those that are too many end at once.

    FIXED: splits of `split_tiles` tiles wherever the block's keys begin; else the keys in `splits` equal parts of that
    many or more. Unless several programs share a block (SHARED), one takes its splits in turn."""
    GROUP: tl.constexpr = H // HK
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b = tl.arange(0, BLOCK_B)
    first_block = tl.load(starts + b, mask=b < rows, other=0) // TOKENS + b
    row = tl.sum(((b < rows) & (first_block <= block)).to(tl.int32), 0) - 1
    start, end, length = tl.load(starts + row), tl.load(starts + row + 1), tl.load(lengths + row)
    done = (block - start // TOKENS - row) * TOKENS  # tokens of the row in blocks before this one
    if done >= end - start:
        return
    position = length - (end - start) + done  # of the block's first token
    high = tl.minimum(length, position + TOKENS)
    low = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else 0
    low_tile, high_tile = low // BLOCK_N, tl.cdiv(high, BLOCK_N)
    if FIXED:
        low_tile = low_tile // split_tiles * split_tiles
    else:
        split_tiles = tl.maximum(tl.cdiv(high_tile - low_tile, splits), split_tiles)
    used = tl.cdiv(high_tile - low_tile, split_tiles)
    if split >= used:
        return

    m_index, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    token, head = done + m_index // GROUP, kv_head * GROUP + m_index % GROUP
    real = (m_index < TOKENS * GROUP) & (token < end - start)
    positions = tl.where(real, position + m_index // GROUP, -1)
    at = (start + token).to(tl.int64) * H + head  # rows of (T H, DH)
    wanted = real[:, None] & (d[None, :] < DH)
    tile_q = tl.load(q + at[:, None] * DH + d[None, :], mask=wanted, other=0)
    page_row = pages + row.to(tl.int64) * page_stride
    if FIXED and not SHARED:
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        s = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for i in range(used):
            begin = low_tile + i * split_tiles
            m2, s2, acc2 = _attend_split(tile_q, positions, begin, tl.minimum(begin + split_tiles, high_tile), page_row,
                                         kv_head, k_pages, v_pages, k_scales, v_scales, low, high, d, scale * LOG2E, HK,
                                         S, DH, BLOCK_M, BLOCK_N, BLOCK_D, WINDOW, FORM)
            m, s, acc = _merge(m, s, acc, m2, s2, acc2)
    else:
        begin = low_tile + split * split_tiles
        m, s, acc = _attend_split(tile_q, positions, begin, tl.minimum(begin + split_tiles, high_tile), page_row,
                                  kv_head, k_pages, v_pages, k_scales, v_scales, low, high, d, scale * LOG2E, HK, S, DH,
                                  BLOCK_M, BLOCK_N, BLOCK_D, WINDOW, FORM)
    if SHARED and used > 1:
        group = block * HK + kv_head
        wide: tl.constexpr = BLOCK_D + 2  # values, largest score, sum
        mine = partial + (group.to(tl.int64) * splits + split) * BLOCK_M * wide + m_index * wide
        tl.store(mine[:, None] + d[None, :], acc)
        tl.store(mine + BLOCK_D, m)
        tl.store(mine + BLOCK_D + 1, s)
        if not arrived_last(locks + group, used):
            return
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        s = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for i in range(used):
            other = partial + (group.to(tl.int64) * splits + i) * BLOCK_M * wide + m_index * wide
            acc2 = tl.load(other[:, None] + d[None, :], cache_modifier=".cg")
            m2 = tl.load(other + BLOCK_D, cache_modifier=".cg")
            s2 = tl.load(other + BLOCK_D + 1, cache_modifier=".cg")
            m, s, acc = _merge(m, s, acc, m2, s2, acc2)
    acc = acc / tl.where(s > 0, s, 1.0)[:, None]
    if OUT_G > 0:
        store_integers(acc, at, 0, real, out, out_scales, out_sums, DH, BLOCK_M, BLOCK_D, OUT_G)
    elif places is None:
        store_floats(acc, at, d[None, :], wanted, out, places, DH)
    else:
        store_floats(acc, (start + token).to(tl.int64), (head * DH)[:, None] + d[None, :], wanted, out, places, H * DH)


def attend_pages(q: Tensor, kv: KV, step: Step, window: int | None, scratch: Tensor, locks: Tensor, processors: int,
                 fixed: bool, form: str = "float", places: Tensor | None = None) -> Act:
    """q (T, H, Dh) -> (T, H Dh). `scratch` float32 and `locks` int32, all zero, as large as plan.gpu_memory says."""
    tokens, heads, head_dim = q.shape
    kv_heads, size = kv.k.shape[1:3]
    group, rows = heads // kv_heads, len(step.lengths)
    block_m, block_d = attention_rows(group, step.max_row, fixed), max(power_of_2(head_dim), 16)
    blocks = tokens // (block_m // group) + rows
    splits = attention_splits(blocks * kv_heads, block_m * (block_d + 2), step.pages.shape[1] * size, processors, fixed)
    out = new_act((tokens, heads * head_dim), q.dtype, q.device, form)
    launch(attend_kernel, (blocks, kv_heads, splits), q, stored(kv.k), stored(kv.v), kv.k_scale, kv.v_scale,
           step.starts, step.lengths, step.pages, *parts(out), places, scratch, locks, rows, step.pages.stride(0),
           FIXED_TILES if fixed else LEAST_TILES, splits, head_dim**-0.5, heads, kv_heads, size, head_dim,
           32 if rows <= 32 else max(power_of_2(rows), 256), block_m, BLOCK_N, block_d, window or 0, form_of(kv),
           splits > 1, fixed, group_of(form), num_warps=4 if block_m == 16 else 8, num_stages=2)
    return out
