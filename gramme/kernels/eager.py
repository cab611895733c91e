"""The operations in torch, on any device, differentiable where kv is None: the base of training and of the GPU backend.

Knows no model and no engine. Shapes are written in `ops`; `reference` defines what is right.
"""
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gramme.formats.grouped import Grouped
from gramme.kernels import reference
from gramme.kernels.ops import KV, Edits, Permuted, Sampled, Sampling, Step


def take(packed: Tensor | Grouped, ids: Tensor) -> Tensor:
    if isinstance(packed, Grouped):
        return _widen(Grouped(*(a[ids.long()] for a in packed[:3]), packed.bits))
    return F.embedding(ids, packed)


def head_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gain, eps)


def add_norm(x: Tensor, r: Tensor | None, gain: Tensor, eps: float, act: str) -> tuple[Tensor, Tensor]:
    r = x if r is None else x + r
    return quantise(head_norm(r, gain, eps), act), r


def quantise(x: Tensor, act: str | Permuted) -> Tensor:
    if isinstance(act, Permuted):
        return quantise(x[:, act.order.long()], act.act)
    if act != "float":
        raise NotImplementedError(f"eager has no activation form {act!r}")
    return x


def matmul(x: Tensor, packed: Tensor | Grouped, bias: Tensor | None) -> Tensor:
    return F.linear(x, _widen(packed).to(x.dtype) if isinstance(packed, Grouped) else packed, bias)


def _widen(w: Grouped) -> Tensor:
    """(N, K) float32. `Grouped` holds tensors here."""
    spread = lambda a: a.repeat_interleave(w.group, 1)
    return spread(w.scales) * w.codes - spread(w.offsets)


def gate_up(x: Tensor, packed: Tensor | Grouped, bias: Tensor | None, act: str) -> Tensor:
    gate, up = matmul(x, packed, bias).chunk(2, -1)
    return quantise(F.silu(gate) * up, act)


def rope(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    cos, sin = table[positions.long()][:, None, :].chunk(2, -1)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, kv: KV | None, step: Step, window: int | None,
           act: str | Permuted) -> Tensor:
    if kv is None and len(q) == step.max_row * len(step.lengths) and window is None:
        return quantise(_attend_equal_rows(q, k, v, step.max_row).flatten(1), act)
    if kv is not None:
        size = kv.k.shape[2]
        page, offset = step.slots.long() // size, step.slots.long() % size
        kv.k[page, :, offset], kv.v[page, :, offset] = k.to(kv.k.dtype), v.to(kv.v.dtype)
    bounds, out = step.starts.tolist(), []
    for b, length in enumerate(step.lengths.tolist()):
        row = slice(bounds[b], bounds[b + 1])
        keys, values = (k[row], v[row]) if kv is None else _context(kv, step.pages[b], length, q.dtype)
        out.append(_attend_row(q[row], keys, values, step.positions[row], window))
    return quantise(torch.cat(out).flatten(1), act)


def _attend_equal_rows(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """Rows that are whole sequences of one length are a batch: one call, what training at full speed needs."""
    q, k, v = (a.unflatten(0, (-1, length)).transpose(1, 2) for a in (q, k, v))  # (B, H, n, Dh)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(0, 1)


def _context(kv: KV, pages: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    used = pages[: -(-length // kv.k.shape[2])].long()
    gather = lambda a: a[used].transpose(1, 2).flatten(0, 1)[:length].to(dtype)
    return gather(kv.k), gather(kv.v)


def _attend_row(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None) -> Tensor:
    length = len(keys)
    distance = positions[:, None] - torch.arange(length, device=q.device)
    seen = (distance >= 0) & (distance < (window or length + 1))
    q, keys, values = (a.transpose(0, 1)[None] for a in (q, keys, values))
    y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
    return y[0].transpose(0, 1)


def sample(logits: Tensor, s: Sampling) -> Sampled:
    """The reference's choice, made on the host; the tokens go back, for a step that runs ahead reads them there."""
    host = lambda a: a.detach().cpu().numpy() if isinstance(a, Tensor) else a
    arrays = {name: host(value) for name, value in vars(s).items() if name != "edits"}
    edits = None if s.edits is None else Edits(*map(host, s.edits))
    chosen = reference.sample(logits.detach().float().cpu().numpy(), Sampling(**arrays, edits=edits))
    put = lambda a: None if a is None else torch.from_numpy(np.ascontiguousarray(a)).to(logits.device)
    return Sampled(*map(put, chosen))


EAGER = replace(
    reference.REFERENCE, take=take, add_norm=add_norm, head_norm=head_norm, quantise=quantise, matmul=matmul,
    gate_up=gate_up, rope=rope, attend=attend, sample=sample,
)


class TorchDevice:
    """One torch device, "cpu" or "cuda"."""

    out_of_memory: type[BaseException] = torch.OutOfMemoryError

    def __init__(self, name: str = "cpu"):
        self.name = name

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.name)

    def put(self, host: Any, into: Tensor | None = None) -> Tensor:
        """A copy on the device. bfloat16 and float8 arrays of ml_dtypes arrive as torch's own."""
        host = np.ascontiguousarray(host)
        if host.dtype.kind == "V" or host.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            bits = torch.from_numpy(host.view(np.int16 if host.itemsize == 2 else np.uint8).copy())
            tensor = bits.view(getattr(torch, host.dtype.name))
        else:
            tensor = torch.from_numpy(host.copy())
        return tensor.to(self.name) if into is None else into.copy_(tensor)

    def pack(self, w: Any) -> Any:
        """Integer weights stay integers, a code a byte."""
        return Grouped(*map(self.put, w[:3]), w.bits) if isinstance(w, Grouped) else self.put(w)

    def get(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return np.asarray(a)
        return (a.detach().float() if a.is_floating_point() else a).cpu().numpy()

    def fetch(self, a: Any) -> Callable[[], Any]:
        return lambda: self.get(a)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run

    def share(self, nbytes: int) -> None:
        """Nothing is captured."""

    def hold(self, nbytes: int) -> None:
        """PyTorch has a cache of its own."""

    def memory(self) -> tuple[int, int]:
        if self.name == "cuda":
            return torch.cuda.mem_get_info()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), total
