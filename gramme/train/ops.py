"""The operations as training wants them: few passes over memory, products in the matrices' type, the rest in float32.

`kernels.eager` defines them; these have gradients written by hand. What stands between two products is one function
each way, a *body*, which torch.compile makes one pass over memory. Knows no model and no data.
"""
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gramme.kernels import eager
from gramme.kernels.ops import KV, Ops, Step

Body = Callable[..., Any]


class Bodies(NamedTuple):
    norm: Body
    norm_back: Body
    turn: Body
    swiglu: Body
    swiglu_back: Body
    softmax: Body
    softmax_back: Body
    nats: Body


def bodies(compiled: bool) -> Bodies:
    """Compiled, a body takes a sixth to a half of its time on a CPU; the first step waits a minute for the compiler."""
    plain = (norm, norm_back, turn, swiglu, swiglu_back, softmax, softmax_back, nats)
    return Bodies(*(torch.compile(body, dynamic=True) for body in plain) if compiled else plain)


def training_ops(base: Ops, dtype: torch.dtype, b: Bodies) -> Ops:
    """Norms keep the residual stream in float32 and hand `dtype` to the products."""
    def add_norm(x: Tensor, r: Tensor | None, gain: Tensor, eps: float, act: str) -> tuple[Tensor, Tensor]:
        r = x.float() if r is None else r + x
        return RmsNorm.apply(r, gain, eps, dtype, b), r

    def rope(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        return Rope.apply(x, table[positions.long()][:, None, :], b)

    def gate_up(x: Tensor, packed: Tensor, bias: Tensor | None, act: str) -> Tensor:
        return SwiGLU.apply(F.linear(x, packed, bias), b)

    def attend(q: Tensor, k: Tensor, v: Tensor, kv: KV | None, step: Step, window: int | None, act: str) -> Tensor:
        if kv is not None or window is not None or step.max_row > SHORT or len(q) != step.max_row * len(step.lengths):
            return eager.attend(q, k, v, kv, step, window, act)
        return attend_short(q, k, v, step.max_row, b)

    return replace(base, add_norm=add_norm, rope=rope, gate_up=gate_up, attend=attend)


class RmsNorm(torch.autograd.Function):
    """x (T, D) float32 times gain (D,) over its root mean square, as `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype, b: Bodies) -> Tensor:
        y, inverse = b.norm(x, gain, eps, dtype)
        ctx.save_for_backward(x, gain, inverse)
        ctx.body = b.norm_back
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.body(*grads, *ctx.saved_tensors), None, None, None


def norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * inverse * gain).to(dtype), inverse


def norm_back(dy: Tensor, x: Tensor, gain: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    dy, unit = dy.float(), x * inverse
    part = dy * unit
    return (dy * gain - unit * (part * gain).mean(-1, keepdim=True)) * inverse, part.sum(0)


class Rope(torch.autograd.Function):
    """x (T, H, Dh) turned by angles (T, 1, Dh) = cos | sin; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor, b: Bodies) -> Tensor:
        ctx.save_for_backward(angles)
        ctx.body = b.turn
        return _turned(x, angles, 1.0, b.turn)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(grads[0], ctx.saved_tensors[0], -1.0, ctx.body), None, None


def _turned(x: Tensor, angles: Tensor, sign: float, body: Body) -> Tensor:
    out = torch.empty_like(x)
    body(*x.chunk(2, -1), *angles.chunk(2, -1), sign, *out.chunk(2, -1))
    return out


def turn(low: Tensor, high: Tensor, cos: Tensor, sin: Tensor, sign: float, to_low: Tensor, to_high: Tensor) -> None:
    """Halves are written where they belong: joined inside a body, they would be chosen element by element."""
    low, high, sin = low.float(), high.float(), sin * sign
    to_low.copy_(low * cos - high * sin)
    to_high.copy_(high * cos + low * sin)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of y (T, 2F) = gate | up."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, b: Bodies) -> Tensor:
        ctx.save_for_backward(y)
        ctx.body = b.swiglu_back
        return b.swiglu(*y.chunk(2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (y,), dy = ctx.saved_tensors, torch.empty_like(ctx.saved_tensors[0])
        ctx.body(grads[0], *y.chunk(2, -1), *dy.chunk(2, -1))
        return dy, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    wide = gate.float()
    return (wide * torch.sigmoid(wide) * up).to(up.dtype)


def swiglu_back(dz: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor) -> None:
    dz, gate = dz.float(), gate.float()
    s = torch.sigmoid(gate)
    dgate.copy_(dz * up * s * (1 + gate * (1 - s)))
    dup.copy_(dz * gate * s)


SHORT = 64  # tokens of a row, up to which three batched products beat torch's fused attention: 7 % of a step, not 22 %


def attend_short(q: Tensor, k: Tensor, v: Tensor, n: int, b: Bodies) -> Tensor:
    """Rows that are whole sequences of one short length n; q (T, H, Dh), k and v (T, G, Dh)."""
    (heads, size), groups = q.shape[1:], k.shape[1]
    q = q.view(-1, n, groups, heads // groups, size).permute(0, 2, 3, 1, 4).reshape(-1, heads // groups * n, size)
    k, v = (a.view(-1, n, groups, size).transpose(1, 2).reshape(-1, n, size) for a in (k, v))
    p = CausalSoftmax.apply(torch.bmm(q, k.transpose(1, 2)), 1 / math.sqrt(size), b)
    y = torch.bmm(p, v).view(-1, groups, heads // groups, n, size).permute(0, 3, 1, 2, 4)
    return y.reshape(-1, heads * size)


class CausalSoftmax(torch.autograd.Function):
    """Scores (B, R n, n), query r n + i at position i of its row, times `scale`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: float, b: Bodies) -> Tensor:
        p = b.softmax(scores, scale)
        ctx.save_for_backward(p)
        ctx.body, ctx.scale = b.softmax_back, scale
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.body(grads[0], ctx.saved_tensors[0], ctx.scale), None, None


def softmax(scores: Tensor, scale: float) -> Tensor:
    rows, n = scores.shape[-2:]
    unseen = torch.arange(n, device=scores.device) > torch.arange(rows, device=scores.device)[:, None] % n
    return (scores.float() * scale).masked_fill(unseen, -math.inf).softmax(-1).to(scores.dtype)


def softmax_back(dp: Tensor, p: Tensor, scale: float) -> Tensor:
    dp, low = dp.float(), p.float()
    return (low * (dp - (dp * low).sum(-1, keepdim=True)) * scale).to(p.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of weights (N,) times the nats of targets (N,) under the head (V, D), for normed hidden states x (N, D).

    The gradients are made in the forward pass, chunk by chunk, so that nothing is computed twice and the logits of
    `chunk` tokens exist at a time. Products are made in the head's type, everything else in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int, b: Bodies) -> Tensor:
        total = torch.zeros((), device=x.device)
        dx, dhead = torch.empty_like(x), torch.zeros_like(head, dtype=torch.float32)
        for i in range(0, len(x), chunk):
            part = slice(i, i + chunk)
            value, dlogits = b.nats(x[part] @ head.T, targets[part, None], weights[part, None])
            total += value
            dx[part] = dlogits @ head
            dhead += dlogits.T @ x[part]
        ctx.save_for_backward(dx, dhead.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dhead = ctx.saved_tensors
        return dx * grads[0], dhead * grads[0], None, None, None, None


def nats(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum for logits (N, V) and targets (N, 1), and its gradient in the logits' type."""
    wide = logits.float()
    log_p = wide - wide.logsumexp(-1, keepdim=True)
    hit = torch.arange(logits.shape[-1], device=logits.device) == targets
    return -(log_p.gather(1, targets) * weights).sum(), ((log_p.exp() - hit.float()) * weights).to(logits.dtype)


PLAIN = bodies(False)
