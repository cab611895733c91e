"""Chooses tokens on the device, in one kernel a step: what `reference.sample` says, without sorting.

Probabilities relative to the largest become integers, units of 2^-40, whose sums do not depend on the order in which
they are added. Tokens fall by the distance of their logit from the largest, whose float32 bits are an ordered key: the
token at which the sum exceeds a bound is found by searching the key, four parts a pass, and among equal keys by id.
top_k, top_p and u are one such search each.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels.cuda.launch import launch
from gramme.kernels.ops import Edits, Sampled, Sampling

BLOCK = 4096
UNIT = tl.constexpr(1099511627776.0)  # 2^40
LAST_KEY = tl.constexpr(0x7F800000)  # the bits of infinity: tokens that cannot be chosen


@triton.jit
def mask_kernel(logits, mask, out, V, words, MASK: tl.constexpr, BLOCK: tl.constexpr):
    """A float32 copy, minus infinity where the mask forbids, NaN where a logit was not finite."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * V + t, mask=t < V, other=0).to(tl.float32)
    y = x
    if MASK:
        word = tl.load(mask + row * words + t // 32, mask=t < V, other=0)
        y = tl.where((word >> (t % 32)) & 1 == 1, x, float("-inf"))
    y = tl.where(tl.abs(x) < float("inf"), y, float("nan"))
    tl.store(out + row * V + t, y, mask=t < V)


@triton.jit
def edit_kernel(x, rows, tokens, bias, repetition, penalty, V, count, BLOCK: tl.constexpr):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    at = x + tl.load(rows + e, mask=inside, other=0).to(tl.int64) * V + tl.load(tokens + e, mask=inside, other=0)
    y = tl.load(at, mask=inside, other=0) + tl.load(bias + e, mask=inside, other=0)
    r = tl.load(repetition + e, mask=inside, other=1)
    tl.store(at, tl.where(y > 0, y / r, y * r) - tl.load(penalty + e, mask=inside, other=0), mask=inside)


@triton.jit
def _keys(row, start, V, heat, largest, min_p, BLOCK: tl.constexpr):
    """Keys of a block of tokens, smallest for the most probable, and their weights in units."""
    t = start + tl.arange(0, BLOCK)
    x = tl.load(row + t, mask=t < V, other=float("-inf")).to(tl.float32)
    away = largest - x / heat
    p = tl.exp(-away)
    kept = (p >= min_p) & (away < float("inf"))
    key = tl.where(kept, tl.abs(away).to(tl.int32, bitcast=True), LAST_KEY)
    return key, tl.where(kept, (p * UNIT).to(tl.int64), 0)


@triton.jit
def _below(row, V, heat, largest, min_p, k1, k2, k3, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Weight, or number, of the tokens with keys below each of three."""
    a, b, c = tl.zeros((), tl.int64), tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for start in range(0, V, BLOCK):
        key, weight = _keys(row, start, V, heat, largest, min_p, BLOCK)
        if COUNT:
            weight = (key < LAST_KEY).to(tl.int64)
        a += tl.sum(tl.where(key < k1, weight, 0), 0)
        b += tl.sum(tl.where(key < k2, weight, 0), 0)
        c += tl.sum(tl.where(key < k3, weight, 0), 0)
    return a, b, c


@triton.jit
def _find(row, V, heat, largest, min_p, bound, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """(key of the first token in order at which the sum exceeds `bound`, the sum of the tokens with smaller keys)."""
    low, high, before = tl.zeros((), tl.int32), tl.full((), LAST_KEY, tl.int32), tl.zeros((), tl.int64)
    while high - low > 1:  # the sum below `low` is `before` <= bound, that below `high` exceeds it
        quarter = tl.maximum((high - low) // 4, 1)
        k1 = low + quarter
        k2 = tl.minimum(k1 + quarter, high)
        k3 = tl.minimum(k2 + quarter, high)
        a, b, c = _below(row, V, heat, largest, min_p, k1, k2, k3, COUNT, BLOCK)
        if a > bound:
            high = k1
        elif b > bound:
            low, high, before = k1, k2, a
        elif c > bound:
            low, high, before = k2, k3, b
        else:
            low, before = k3, c
    return low, before


@triton.jit
def _weight(key):
    """Of a token with that key."""
    return (tl.exp(-key.to(tl.float32, bitcast=True)) * UNIT).to(tl.int64)


@triton.jit
def choose_kernel(logits, temperature, top_p, min_p, top_k, u, tokens, V, BLOCK: tl.constexpr, EDITED: tl.constexpr):
    """One program a row."""
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * V
    largest, best = tl.full((), float("-inf"), tl.float32), tl.full((), -1, tl.int32)
    bad = tl.zeros((), tl.int32)
    for start in range(0, V, BLOCK):
        t = start + tl.arange(0, BLOCK)
        x = tl.load(row + t, mask=t < V, other=0).to(tl.float32)
        if EDITED:
            bad += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
        else:
            bad += tl.sum((~(tl.abs(x) < float("inf"))).to(tl.int32), 0)
        x = tl.where(t < V, x, float("-inf"))
        here = tl.max(x, 0)
        if here > largest:
            best = tl.min(tl.where(x == here, t, V), 0)
            largest = here
    heat = tl.load(temperature + n)
    if (bad > 0) | (best < 0):
        tl.store(tokens + n, -1)
    elif heat == 0:
        tl.store(tokens + n, best)
    else:
        tl.store(tokens + n, _draw(row, V, heat, largest / heat, tl.load(top_p + n), tl.load(min_p + n),
                                   tl.load(top_k + n), tl.load(u + n), BLOCK))


@triton.jit
def _draw(row, V, heat, largest, top_p, min_p, top_k, u, BLOCK: tl.constexpr):
    mass, count = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for start in range(0, V, BLOCK):
        key, weight = _keys(row, start, V, heat, largest, min_p, BLOCK)
        mass += tl.sum(weight, 0)
        count += tl.sum((key < LAST_KEY).to(tl.int64), 0)
    if (top_k > 0) & (top_k < count):
        last, before = _find(row, V, heat, largest, min_p, (top_k - 1).to(tl.int64), True, BLOCK)
        lighter, _b, _c = _below(row, V, heat, largest, min_p, last, last, last, False, BLOCK)
        mass = lighter + (top_k - before) * _weight(last)
    if top_p < 1:
        bound = tl.ceil(top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64) - 1
        last, before = _find(row, V, heat, largest, min_p, tl.minimum(bound, mass - 1), False, BLOCK)
        each = _weight(last)
        mass = before + ((tl.minimum(bound, mass - 1) - before) // each + 1) * each
    bound = tl.minimum((u * mass.to(tl.float64)).to(tl.int64), mass - 1)
    last, before = _find(row, V, heat, largest, min_p, bound, False, BLOCK)
    which = (bound - before) // _weight(last)  # among the tokens with this key, by id
    token, seen = tl.full((), -1, tl.int32), tl.zeros((), tl.int64)
    for start in range(0, V, BLOCK):
        key, _w = _keys(row, start, V, heat, largest, min_p, BLOCK)
        equal = (key == last).to(tl.int32)
        hit = (equal == 1) & (seen + tl.cumsum(equal, 0) - 1 == which)
        token = tl.maximum(token, tl.max(tl.where(hit, start + tl.arange(0, BLOCK), -1), 0))
        seen += tl.sum(equal, 0)
    return token


def sample(logits: Tensor, s: Sampling) -> Sampled:
    """logits (N, V) -> tokens on the device; nothing is copied to the host."""
    n, vocab = logits.shape
    edited = logits if s.mask is None and s.edits is None else _edited(logits, s.mask, s.edits)
    tokens = torch.empty(n, dtype=torch.int32, device=logits.device)
    block = min(BLOCK, max(triton.next_power_of_2(vocab), 16))
    launch(choose_kernel, (n,), edited, s.temperature, s.top_p, s.min_p, s.top_k, s.u, tokens, vocab, block,
           edited is not logits, num_warps=16)
    return Sampled(tokens, *_report(logits.float(), edited.float(), tokens, s)) if s.logprobs else Sampled(tokens)


def _edited(logits: Tensor, mask: Tensor | None, edits: Edits | None) -> Tensor:
    n, vocab = logits.shape
    out = torch.empty(n, vocab, device=logits.device)
    words = None if mask is None else mask.view(torch.int32)
    launch(mask_kernel, (n, -(-vocab // BLOCK)), logits, words, out, vocab, -(-vocab // 32), mask is not None, BLOCK)
    if edits is not None:
        count = len(edits.rows)
        launch(edit_kernel, (-(-count // 128),), out, *edits, vocab, count, 128)
    return out


def _report(raw: Tensor, x: Tensor, tokens: Tensor, s: Sampling) -> tuple[Tensor, ...]:
    """Log-probabilities and ranks of the chosen tokens, and the most probable ones of each row."""
    if s.processed is not None:
        heat = torch.where(s.temperature > 0, s.temperature, 1.0)[:, None]
        raw = torch.where(s.processed[:, None], x / heat, raw)
    lp = torch.log_softmax(torch.where((tokens >= 0)[:, None], raw, 0.0), -1)
    chosen = lp.gather(1, tokens.clamp(min=0).long()[:, None])
    ranks = 1 + (lp > chosen).sum(-1, dtype=torch.int32)
    values, ids = torch.sort(lp, dim=-1, descending=True, stable=True)
    return chosen[:, 0], ranks, ids[:, : s.top].int(), values[:, : s.top]
