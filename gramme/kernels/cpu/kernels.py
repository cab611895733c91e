"""The operations on the C++ kernels: checks shapes, strides and indices, makes room for results, and calls.

Nothing reaches C that it could read or write outside of. Knows no model. Shapes are written in `kernels.ops`.
"""
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gramme.config import ConfigError
from gramme.kernels import reference
from gramme.kernels.cpu.arena import Arena, Room
from gramme.kernels.cpu.layout import FLOAT_KINDS, INT8_KV, Packed
from gramme.kernels.cpu.library import Op, Pool, Program
from gramme.kernels.ops import KV, Array, Ops, Permuted, Quantised, Sampled, Sampling, Step

SPAN = 512  # tokens of context that one chunk of attention reads, see attention.h
TILE_ROWS = 32
PAGE_TOKENS = 16  # of a page that is made for whole sequences
Act = Array | Quantised


class CpuKernels:
    """One pool of threads and the memory of results. Not thread-safe: one engine, one thread."""

    def __init__(self, level: str, threads: int):
        self.pool, self.arena = Pool(level, threads), Arena()
        self.captured = Room(0)  # results of captured calls

    def ops(self) -> Ops:
        return replace(
            reference.REFERENCE, take=self.take, add_norm=self.add_norm, head_norm=self.head_norm,
            quantise=self.quantise, matmul=self.matmul, gate_up=self.gate_up, rope=self.rope, attend=self.attend,
            sample=self.sample,
        )

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run, recording every call; what is returned does them all again, on the same addresses, by one call of C.
        Results stand in the same room for all that is captured: they last until the next of them runs."""
        outside, self.arena = self.arena, Arena(slack=float("inf"))
        self.arena.room = Room(self.captured.nbytes, of=self.captured)
        program = self.pool.program = Program(self.pool, self.arena)
        try:
            run()
        finally:
            self.arena, self.pool.program = outside, None
        program.close()
        return program

    def take(self, packed: Packed | Array, ids: Array) -> Array:
        plain = not isinstance(packed, Packed)
        rows, columns = packed.shape
        self._guard(("ids", id(ids), rows), lambda: _indices("ids", ids, rows))
        if plain:
            packed = Packed(_floats("x", packed, (rows, columns)), (rows, columns), -1)
        y = self.arena.empty((len(ids), columns), np.float32)
        self._call(Op.TAKE, [packed.data, packed.scales, packed.zeros, ids, y],
                   [len(ids), columns, packed.kind, packed.group], [packed.unit])
        return y

    def add_norm(self, x: Array, r: Array | None, gain: Array, eps: float, act: str | Permuted) -> tuple[Act, Array]:
        if isinstance(act, Permuted):
            y, total = self.add_norm(x, r, gain, eps, "float")
            return self.quantise(y, act), total
        shape, group = x.shape, _group(act)
        _floats("x", x, shape)
        _floats("gain", gain, shape[1:])
        if r is not None:
            _floats("r", r, shape)
        total = self.arena.empty(shape, np.float32)
        y = self._act(shape, group)
        self._call(Op.ADD_NORM, [x, r, gain, total, *_parts(y)], [*shape, group], [eps])
        return y, total

    def head_norm(self, x: Array, gain: Array, eps: float) -> Array:
        y = self.arena.empty(x.shape, np.float32)
        stride = _heads("x", x)
        _floats("gain", gain, x.shape[2:])
        self._call(Op.HEAD_NORM, [x, gain, y], [len(x), x[0].size, x.shape[2], stride] if len(x) else [0, 1], [eps])
        return y

    def quantise(self, x: Array, act: str | Permuted) -> Act:
        if act == "float":
            return x
        form, order = (act.act, act.order) if isinstance(act, Permuted) else (act, None)
        _floats("x", x, x.shape)
        if order is not None:  # a weight's own, so that what was once right needs no check at a replay
            _indices("order", order, x.shape[1], x.shape[1])
        y = self._act(x.shape, _group(form))
        if not isinstance(y, Quantised):
            raise ValueError("float activations are multiplied in their own order only")
        self._call(Op.QUANTISE, [x, *y, order], [*x.shape, _group(form)])
        return y

    def matmul(self, x: Act, packed: Packed, bias: Array | None) -> Array:
        tokens, group = _product("x", x, packed)
        rows = packed.shape[0]
        if bias is not None:
            _floats("bias", bias, (rows,))
        y = self.arena.empty((tokens, rows), np.float32)
        self._call(Op.MATMUL, [packed.data, packed.scales, packed.zeros, *_parts(x), bias, y],
                   [tokens, *packed.shape, packed.kind, packed.group, group], [packed.unit])
        return y

    def gate_up(self, x: Act, packed: Packed, bias: Array | None, act: str | Permuted) -> Act:
        if isinstance(act, Permuted):
            return self.quantise(self.gate_up(x, packed, bias, "float"), act)
        tokens, group = _product("x", x, packed)
        rows = packed.shape[0]
        if bias is not None:
            _floats("bias", bias, (rows,))
        y = self._act((tokens, rows // 2), _group(act))
        parts = _parts(y)
        self._call(Op.GATE_UP, [packed.data, packed.scales, packed.zeros, *_parts(x), bias, *parts],
                   [tokens, *packed.shape, packed.kind, packed.group, group, _group(act)], [packed.unit])
        return y

    def rope(self, x: Array, table: Array, positions: Array) -> Array:
        stride = _heads("x", x)
        _floats("table", table, (len(table), x.shape[2]))
        self._guard(("positions", id(positions)), lambda: _indices("positions", positions, len(table), len(x)))
        y = self.arena.empty(x.shape, np.float32)
        self._call(Op.ROPE, [x, table, positions, y], [len(x), x[0].size, x.shape[2], stride] if len(x) else [0, 1])
        return y

    def attend(self, q: Array, k: Array, v: Array, kv: KV | None, step: Step, window: int | None,
               act: str | Permuted) -> Act:
        if kv is None:  # whole sequences: embedding and scoring, through pages of their own
            kv, step = _own_pages(k, step)
        tokens, heads, head_dim = q.shape
        kind = _check_kv(q, k, v, kv)
        self._guard(("step", id(step)), lambda: _check_step(tokens, kv, step))
        y = self.arena.empty(q.shape, np.float32)
        flat = y.reshape(tokens, heads * head_dim)
        if tokens == 0:
            return self.quantise(flat, act)
        _, kv_heads, size, _ = kv.k.shape
        self._call(Op.WRITE_KV, [k, v, kv.k, kv.v, kv.k_scale, kv.v_scale, step.slots],
                   [tokens, kv_heads, head_dim, size, kind, _heads("k", k), _heads("v", v)])
        spans, together = self._shares(tokens, heads // kv_heads, kv_heads, len(step.lengths), step.max_length)
        partial = self.arena.empty((tokens * heads * spans * (head_dim + 2),), np.float32)
        pointers = [q, kv.k, kv.v, kv.k_scale, kv.v_scale, step.positions, step.starts, step.lengths, step.pages, y,
                    partial]
        sizes = [tokens, heads, kv_heads, head_dim, size, kind, len(step.lengths), step.pages.shape[1], window or 0,
                 spans, _heads("q", q), together]
        self._call(Op.ATTEND, pointers, sizes, [head_dim**-0.5])
        if spans:
            self._call(Op.MERGE, pointers, sizes)
        return self.quantise(flat, act)

    def sample(self, logits: Array, s: Sampling) -> Sampled:
        plain = s.edits is None and s.mask is None and not s.logprobs
        if not plain or self.pool.program is not None or not logits.size:
            return reference.sample(logits, s)
        _floats("logits", logits, logits.shape)
        rows = (len(logits),)
        for name, a in (("temperature", s.temperature), ("top_p", s.top_p), ("min_p", s.min_p)):
            _floats(name, a, rows)
        if s.top_k.dtype != np.int32 or s.u.dtype != np.float64 or s.top_k.shape != rows or s.u.shape != rows or \
                not (s.top_k.flags.c_contiguous and s.u.flags.c_contiguous):
            raise ValueError(f"top_k must be {rows} contiguous int32, u float64")
        tokens = np.empty(len(logits), np.int32)
        self._call(Op.SAMPLE, [logits, tokens, s.temperature, s.top_p, s.min_p, s.top_k, s.u], logits.shape)
        return Sampled(tokens)

    def read(self, data: Array) -> None:
        """Read an array with all threads: what a bandwidth is measured with."""
        self._call(Op.READ, [data, self.arena.empty((-(-data.nbytes >> 18) + 1,), np.int32)], [data.nbytes])

    def _shares(self, tokens: int, shared: int, kv_heads: int, rows: int, length: int) -> tuple[int, int]:
        """Into how many spans contexts are cut (0: not at all) and how many KV heads are read together.

        Memory is read best with all heads together, but there must be enough for all threads to share.
        """
        tiles, enough = max(rows, -(-tokens // max(1, TILE_ROWS // shared))), 8 * self.pool.threads
        spans = -(-length // SPAN)
        spans = spans if spans > 1 and tiles * kv_heads < enough else 0
        return spans, max(1, min(kv_heads, tiles * max(1, spans) * kv_heads // enough))

    def _act(self, shape: tuple[int, ...], group: int) -> Act:
        if not group:
            return self.arena.empty(shape, np.float32)
        if shape[1] % group:
            raise ValueError(f"{shape[1]} columns are no multiple of groups of {group}")
        groups = (shape[0], shape[1] // group)
        return Quantised(self.arena.empty(shape, np.int8), *(self.arena.empty(groups, np.float32) for _ in range(2)))

    def _guard(self, key: Any, check: Callable[[], object]) -> None:
        """Check now and, where calls are recorded, before each replay; what several operations read is checked once."""
        program = self.pool.program
        if program is None:
            check()
        elif key not in program.guards:
            check()
            program.guards[key] = check

    def _call(self, op: Op, arrays: list[Array | None], sizes: Any, floats: Any = ()) -> None:
        """Run it. A recorded call keeps its arrays alive, results excepted: their blocks serve later calls again."""
        recorded = self.pool.program is not None
        keep = [a for a in arrays if a is not None and not self.arena.holds(a)] if recorded else arrays
        self.pool.call(op, [None if a is None else a.ctypes.data for a in arrays], sizes, floats, keep=keep)


class CpuDevice(reference.NumpyDevice):
    """Host memory, and calls that can be recorded."""

    def __init__(self, kernels: CpuKernels):
        self.kernels = kernels
        self.name = f"cpu ({kernels.pool.level}, {kernels.pool.threads} threads)"

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return self.kernels.capture(run)

    def share(self, nbytes: int) -> None:
        self.kernels.captured = Room(nbytes)

    def hold(self, nbytes: int) -> None:
        self.kernels.arena.room = Room(nbytes)
        self.kernels.arena.room.touch()
        self.kernels.captured.touch()


def check_shape(head_dim: int, shared: int, page_size: int) -> None:
    """Raises ConfigError for what attention's tiles do not hold."""
    if head_dim % 16 or head_dim > 512 or shared > TILE_ROWS:
        raise ConfigError(f"the CPU kernels want heads of a multiple of 16 up to 512 and at most {TILE_ROWS} heads to "
                          f"a KV head, not {head_dim} and {shared}: use --backend reference")
    if page_size & (page_size - 1):
        raise ConfigError(f"the CPU kernels want --page-size to be a power of two, not {page_size}")


def _parts(x: Act) -> list[Array | None]:
    return [*x] if isinstance(x, Quantised) else [x, None, None]


def _group(act: str) -> int:
    """The values that share a scale; 0: floats."""
    return 0 if act == "float" else int(act.removeprefix("int8/"))


def _floats(name: str, a: Array, shape: tuple[int, ...]) -> Array:
    if a.dtype != np.float32 or a.shape != shape or not a.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous float32 array of {shape}, not {a.dtype} {a.shape}")
    return a


def _heads(name: str, x: Array) -> int:
    """The floats from one token to the next of x (T, H, Dh), whose heads lie side by side."""
    if x.dtype != np.float32 or x.ndim != 3 or x.strides[1:] != (4 * x.shape[2], 4) or x.strides[0] % 4 or \
            x.strides[0] < 0:
        raise ValueError(f"{name} must be float32 (T, H, Dh) with heads side by side, not {x.dtype} {x.strides}")
    return x.strides[0] // 4


def _indices(name: str, a: Array, below: int, count: int | None = None) -> None:
    if a.dtype != np.int32 or a.ndim != 1 or not a.flags.c_contiguous or (count is not None and len(a) != count):
        raise ValueError(f"{name} must be {count or ''} contiguous int32 indices, not {a.dtype} {a.shape}")
    if len(a) and not (int(a.min()) >= 0 and int(a.max()) < below):
        raise ValueError(f"{name} must lie from 0 to {below - 1}, not {a.min()} to {a.max()}")


def _product(name: str, x: Act, packed: Packed) -> tuple[int, int]:
    """(tokens, group of x), once x and the matrix are known to go together."""
    columns = packed.shape[1]
    if packed.kind in FLOAT_KINDS.values():
        if isinstance(x, Quantised):
            raise ValueError("a float matrix multiplies float activations")
        return len(_floats(name, x, (len(x), columns))), 0
    if not isinstance(x, Quantised):
        raise ValueError("an integer matrix multiplies quantised activations")
    tokens, groups = x.scales.shape
    group = columns // groups if groups and columns % groups == 0 else 0
    if x.values.shape != (tokens, columns) or x.values.dtype != np.int8 or group not in (32, 128) or \
            packed.group % group:
        raise ValueError(f"activations of {x.values.shape} in {groups} groups do not fit a matrix of {packed.shape} in "
                         f"groups of {packed.group}")
    _floats("scales", x.scales, (tokens, groups))
    _floats("sums", x.sums, (tokens, groups))
    return tokens, group


def _check_kv(q: Array, k: Array, v: Array, kv: KV) -> int:
    """The kind of the pages, once shapes and types are known to go together."""
    pages, kv_heads, size, head_dim = kv.k.shape
    tokens = len(q)
    check_shape(head_dim, q.shape[1] // kv_heads, size)
    kind = INT8_KV if kv.k.dtype == np.int8 else FLOAT_KINDS[kv.k.dtype.name]
    if not (k.shape == v.shape == (tokens, kv_heads, head_dim)) or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise ValueError(f"q, k, v of {q.shape}, {k.shape}, {v.shape} do not fit pages of {kv.k.shape}")
    same = kv.v.shape == kv.k.shape and kv.v.dtype == kv.k.dtype
    if not same or not (kv.k.flags.c_contiguous and kv.v.flags.c_contiguous):
        raise ValueError("pages of K and V must be contiguous and alike")
    if kind == INT8_KV and any(s is None or s.shape != (pages, kv_heads, size) or s.dtype != np.float16
                               for s in (kv.k_scale, kv.v_scale)):
        raise ValueError(f"int8 pages need float16 scales of {(pages, kv_heads, size)}")
    return kind


def _check_step(tokens: int, kv: KV, step: Step) -> None:
    """Raises ValueError unless every index of the step stays inside the pages and the step's arrays."""
    pages, _, size, _ = kv.k.shape
    rows = len(step.lengths)
    _indices("slots", step.slots, pages * size, tokens)
    _indices("starts", step.starts, tokens + 1, rows + 1)
    _indices("positions", step.positions, step.pages.shape[1] * size, tokens)
    _indices("pages", step.pages.reshape(-1), pages)
    if (np.diff(step.starts) < 0).any() or step.starts[0] != 0 or step.starts[-1] != tokens:
        raise ValueError(f"starts must rise from 0 to {tokens}")
    if (np.diff(step.positions) < 1)[np.isin(np.arange(1, tokens), step.starts, invert=True)].any():
        raise ValueError("positions must rise within a row")


def _own_pages(k: Array, step: Step) -> tuple[KV, Step]:
    """Pages for rows that are whole sequences: one run of float32 pages a row, behind the scratch page."""
    size = PAGE_TOKENS
    counts = -(-np.diff(step.starts) // size)
    first = 1 + np.concatenate([[0], np.cumsum(counts)])
    table = np.zeros((len(counts), max(1, int(counts.max(initial=0)))), np.int32)
    for b, n in enumerate(counts):
        table[b, :n] = np.arange(first[b], first[b] + n)
    shape = (int(first[-1]), k.shape[1], size, k.shape[2])
    owners = np.repeat(np.arange(len(counts)), np.diff(step.starts))
    slots = (first[owners] * size + step.positions).astype(np.int32)
    kv = KV(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    return kv, replace(step, pages=table, slots=slots)
