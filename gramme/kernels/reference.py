"""The operations in plain numpy: the definition of correct, and the CPU backend where nothing faster is compiled.

Every array between operations is float32; bfloat16 and float16 pages are storage, widened when read. Knows no model and
no engine. Shapes are written in `ops`.
"""
from collections.abc import Callable, Iterator

import numpy as np

from gramme.formats.grouped import Grouped, dense, rows
from gramme.kernels.ops import KV, Array, Edits, Ops, Permuted, Quantised, Sampled, Sampling, Step


def take(packed: Array | Grouped, ids: Array) -> Array:
    if isinstance(packed, Grouped):
        return dense(rows(packed, ids))
    return packed[ids].astype(np.float32, copy=False)


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """Root mean square normalisation over the last axis (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)) * gain


def add_norm(x: Array, r: Array | None, gain: Array, eps: float, act: str) -> tuple[Array, Array]:
    r = x if r is None else x + r
    return quantise(rms_norm(r, gain, eps), act), r


def quantise(x: Array, act: str | Permuted) -> Array | Quantised:
    if isinstance(act, Permuted):
        return quantise(x[:, act.order], act.act)
    if act == "float":
        return x
    rows, columns = x.shape
    group = int(act.removeprefix("int8/"))
    x = x.reshape(rows, columns // group, group)
    largest = np.abs(x).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    values = np.rint(x * inverse).astype(np.int8)
    scales = largest[..., 0] * np.float32(1 / 127)
    return Quantised(values.reshape(rows, columns), scales, scales * values.sum(-1, dtype=np.int32).astype(np.float32))


def matmul(x: Array | Quantised, packed: Array | Grouped, bias: Array | None) -> Array:
    y = _integer_matmul(x, packed) if isinstance(packed, Grouped) else x @ packed.T
    return y if bias is None else y + bias


def _integer_matmul(x: Quantised, w: Grouped) -> Array:
    """Integer products are exact; groups are scaled and added in float64, so this is what a kernel is compared with."""
    group = x.values.shape[1] // x.scales.shape[1]
    spread = lambda a: np.repeat(a, w.group // group, 1).astype(np.float64)  # of the weight's groups
    scales, offsets, y = spread(w.scales), spread(w.offsets), 0.0
    for g in range(x.scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        products = x.values[:, part].astype(np.float64) @ w.codes[:, part].T.astype(np.float64)
        y = y + products * x.scales[:, g, None] * scales[:, g] - x.sums[:, g, None].astype(np.float64) * offsets[:, g]
    return y.astype(np.float32)


def gate_up(x: Array | Quantised, packed: Array | Grouped, bias: Array | None, act: str) -> Array:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up, the first F rows of packed being the gate."""
    gate, up = np.split(matmul(x, packed, bias), 2, -1)
    with np.errstate(over="ignore"):  # exp overflows to inf where silu is 0
        return quantise(gate / (1 + np.exp(-gate)) * up, act)


def rope(x: Array, table: Array, positions: Array) -> Array:
    """Rotate the pairs (i, i + Dh / 2) by their position's angles (arXiv 2104.09864)."""
    cos, sin = np.split(table[positions][:, None, :], 2, -1)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Array, k: Array, v: Array, kv: KV | None, step: Step, window: int | None,
           act: str | Permuted) -> Array | Quantised:
    """Causal attention of each row over its own context; K and V are written to the pages first, then read there."""
    if kv is not None:
        at = step.slots // kv.k.shape[2], slice(None), step.slots % kv.k.shape[2]
        for pages, scales, new in ((kv.k, kv.k_scale, k), (kv.v, kv.v_scale, v)):
            if scales is None:
                pages[at] = new
            else:
                pages[at], scales[at] = _codes(new)
    out = np.empty_like(q)
    for b, length in enumerate(step.lengths.tolist()):
        low, high = int(step.starts[b]), int(step.starts[b + 1])
        keys, values = (k[low:high], v[low:high]) if kv is None else _context(kv, step.pages[b], length)
        out[low:high] = _attend_row(q[low:high], keys, values, step.positions[low:high], window)
    return quantise(out.reshape(len(q), q.shape[1] * q.shape[2]), act)


def _codes(x: Array) -> tuple[Array, Array]:
    """x (T, Hk, Dh) -> int8 codes and the float16 scale of each token and head, by which they were made."""
    scales = (np.abs(x).max(-1) * np.float32(1 / 127)).astype(np.float16)
    wide = scales.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(wide > 0, 1 / wide, np.float32(0))
    return np.clip(np.rint(x * inverse[..., None]), -127, 127).astype(np.int8), scales


def _context(kv: KV, pages: Array, length: int) -> tuple[Array, Array]:
    """A row's keys and values from its pages, each (length, Hk, Dh)."""
    used = pages[: -(-length // kv.k.shape[2])]
    heads = kv.k.shape[1]
    gather = lambda a: a[used].swapaxes(1, 2).reshape(-1, heads, *a.shape[3:])[:length].astype(np.float32, copy=False)
    if kv.k_scale is None:
        return gather(kv.k), gather(kv.v)
    return gather(kv.k) * gather(kv.k_scale)[..., None], gather(kv.v) * gather(kv.v_scale)[..., None]


def _attend_row(q: Array, keys: Array, values: Array, positions: Array, window: int | None) -> Array:
    tokens, heads, head_dim = q.shape
    length, kv_heads, _ = keys.shape
    q = q.reshape(tokens, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)  # (Hk, H / Hk, T, Dh)
    scores = q @ keys.transpose(1, 2, 0)[:, None] * np.float32(head_dim**-0.5)
    distance = positions[:, None] - np.arange(length)
    seen = (distance >= 0) & (distance < (window or length + 1))
    scores = np.where(seen, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ values.transpose(1, 0, 2)[:, None]).transpose(2, 0, 1, 3).reshape(tokens, heads, head_dim)


def sample(logits: Array, s: Sampling) -> Sampled:
    """Choose a token for each row in vLLM's order: mask, edits, temperature, min_p, top_k, top_p, then u."""
    raw = logits.astype(np.float32)
    good = np.isfinite(raw).all(-1)
    x = _edited(np.where(good[:, None], raw, np.float32(0)), s)
    good &= (x > -np.inf).any(-1)
    tokens = x.argmax(-1).astype(np.int32)
    for row in np.flatnonzero((s.temperature > 0) & good):
        tokens[row] = _draw(x[row] / s.temperature[row], s.top_p[row], s.min_p[row], int(s.top_k[row]), s.u[row])
    tokens[~good] = -1
    if not s.logprobs:
        return Sampled(tokens)
    return Sampled(tokens, *_report(raw, x, tokens, good, s))


def _edited(x: Array, s: Sampling) -> Array:
    if s.mask is not None:
        bits = np.unpackbits(np.ascontiguousarray(s.mask).view(np.uint8), axis=-1, bitorder="little")
        x = np.where(bits[:, : x.shape[1]].astype(bool), x, np.float32(-np.inf))
    for row, e in _by_row(s.edits):
        y = x[row, e.tokens] + e.bias
        x[row, e.tokens] = np.where(y > 0, y / e.repetition, y * e.repetition) - e.penalty
    return x


def _by_row(edits: Edits | None) -> Iterator[tuple[int, Edits]]:
    """Those of each row that has some."""
    if edits is None:
        return
    rows, starts = np.unique(edits.rows, return_index=True)
    for row, start, end in zip(rows.tolist(), starts, [*starts[1:], None]):
        yield row, Edits(*(a[start:end] for a in edits))


def _draw(x: Array, top_p: float, min_p: float, top_k: int, u: float) -> int:
    """The first token, by falling probability then id, whose cumulative probability exceeds u."""
    p = np.exp((x - x.max()).astype(np.float64))
    order = np.flatnonzero(p >= min_p)  # p is relative to the most probable token's
    order = order[np.argsort(-p[order], kind="stable")][: top_k if top_k > 0 else None]
    cumulative = np.cumsum(p[order])
    if top_p < 1:
        cumulative = cumulative[: np.searchsorted(cumulative, top_p * cumulative[-1]) + 1]
    return int(order[min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(cumulative) - 1)])


def _report(raw: Array, x: Array, tokens: Array, good: Array, s: Sampling) -> tuple[Array, ...]:
    """Log-probabilities and ranks of the chosen tokens, and the most probable ones of each row. Row by row: what is
    between is as large as the logits, in several copies."""
    count, most = len(tokens), min(s.top, raw.shape[1])
    chosen, ranks = np.zeros(count, np.float32), np.zeros(count, np.int32)
    ids, values = np.zeros((count, most), np.int32), np.zeros((count, most), np.float32)
    for row in range(count):
        lp = log_softmax(_reported(raw, x, row, s) if good[row] else np.zeros_like(raw[row]))
        chosen[row] = lp[max(tokens[row], 0)]
        ranks[row] = 1 + (lp > chosen[row]).sum()
        ids[row] = np.argsort(-lp, kind="stable")[:most]
        values[row] = lp[ids[row]]
    return chosen, ranks, ids, values


def _reported(raw: Array, x: Array, row: int, s: Sampling) -> Array:
    """The logits whose log-probabilities are told: as they came, or after all that changed them."""
    if s.processed is None or not s.processed[row]:
        return raw[row]
    return x[row] / np.float32(s.temperature[row] if s.temperature[row] > 0 else 1)


def log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


REFERENCE = Ops(
    take=take, add_norm=add_norm, head_norm=rms_norm, quantise=quantise, matmul=matmul, gate_up=gate_up, rope=rope,
    attend=attend, sample=sample,
)


class NumpyDevice:
    """Host memory. Steps run where they are called, so nothing waits and nothing is captured."""

    name = "cpu"
    out_of_memory: type[BaseException] = MemoryError

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, storage_dtype(dtype))

    def put(self, host: Array, into: Array | None = None) -> Array:
        if into is None:
            return host
        into[...] = host
        return into

    def get(self, a: Array) -> Array:
        return a

    def fetch(self, a: Array) -> Callable[[], Array]:
        return lambda: a

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run

    def share(self, nbytes: int) -> None:
        """Nothing is captured."""

    def hold(self, nbytes: int) -> None:
        """numpy's results have no place of their own."""


def storage_dtype(name: str) -> np.dtype:
    """numpy's dtype of that name, ml_dtypes' where numpy has none."""
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)
