"""The operations as training wants them: few passes over memory, products in the matrices' type, the rest in float32.

`kernels.eager` defines them; these have gradients written by hand. Knows no model and no data.
"""
import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gramme.kernels import eager
from gramme.kernels.ops import KV, Ops, Step


def training_ops(base: Ops, dtype: torch.dtype) -> Ops:
    """Norms keep the residual stream in float32 and hand `dtype` to the products."""
    def add_norm(x: Tensor, r: Tensor | None, gain: Tensor, eps: float, act: str) -> tuple[Tensor, Tensor]:
        r = x.float() if r is None else r + x
        return RmsNorm.apply(r, gain, eps, dtype), r

    def rope(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        return Rope.apply(x, table[positions.long()][:, None, :])

    def gate_up(x: Tensor, packed: Tensor, bias: Tensor | None, act: str) -> Tensor:
        return SwiGLU.apply(F.linear(x, packed, bias))

    return replace(base, add_norm=add_norm, rope=rope, gate_up=gate_up, attend=attend)


class RmsNorm(torch.autograd.Function):
    """x (T, D) float32 times gain (D,) over its root mean square, as `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, inverse = ctx.saved_tensors
        dy, unit = grads[0].float(), x * inverse
        part = dy * unit
        dgain = part.sum(0)
        mean = part.mul_(gain).mean(-1, keepdim=True)
        return (dy * gain).sub_(unit.mul_(mean)).mul_(inverse), dgain, None, None


class Rope(torch.autograd.Function):
    """x (T, H, Dh) turned by angles (T, 1, Dh) = cos | sin; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        ctx.save_for_backward(angles)
        return _turn(x, angles, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _turn(grads[0], ctx.saved_tensors[0], -1), None


def _turn(x: Tensor, angles: Tensor, sign: int) -> Tensor:
    (cos, sin), (a, b), out = angles.chunk(2, -1), x.float().chunk(2, -1), torch.empty_like(x)
    low, high = out.chunk(2, -1)
    low.copy_((a * cos).addcmul_(b, sin, value=-sign))
    high.copy_((b * cos).addcmul_(a, sin, value=sign))
    return out


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of y (T, 2F) = gate | up."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        gate, up = y.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gate, up = ctx.saved_tensors[0].chunk(2, -1)
        dy = torch.empty_like(ctx.saved_tensors[0])
        dgate, dup = dy.chunk(2, -1)
        dgate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        torch.mul(F.silu(gate), grads[0], out=dup)
        return dy


def attend(q: Tensor, k: Tensor, v: Tensor, kv: KV | None, step: Step, window: int | None, act: str) -> Tensor:
    """As `eager.attend`; rows of one short length go through three batched products, since torch's fused attention
    takes 22 % of a step on a CPU at 28 tokens a row and these take 7 %."""
    n = step.max_row
    if kv is not None or window is not None or n > 64 or len(q) != n * len(step.lengths):
        return eager.attend(q, k, v, kv, step, window, act)
    (heads, size), groups = q.shape[1:], k.shape[1]
    q = q.view(-1, n, groups, heads // groups, size).permute(0, 2, 3, 1, 4).reshape(-1, heads // groups * n, size)
    k, v = (a.view(-1, n, groups, size).transpose(1, 2).reshape(-1, n, size) for a in (k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(-1, heads // groups, n, n) * (1 / math.sqrt(size))
    unseen = torch.full((n, n), -math.inf, dtype=scores.dtype, device=q.device).triu(1)
    p = (scores + unseen).softmax(-1).to(v.dtype).view(-1, heads // groups * n, n)
    y = torch.bmm(p, v).view(-1, groups, heads // groups, n, size).permute(0, 3, 1, 2, 4)
    return y.reshape(-1, heads * size)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of weights (N,) times the nats of targets (N,) under the head (V, D), for normed hidden states x (N, D).

    The gradients are made in the forward pass, chunk by chunk, so that nothing is computed twice and the logits of
    `chunk` tokens exist at a time. Products are made in the head's type, everything else in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int) -> Tensor:
        total = torch.zeros((), device=x.device)
        dx, dhead = torch.empty_like(x), torch.zeros_like(head, dtype=torch.float32)
        for i in range(0, len(x), chunk):
            part = slice(i, i + chunk)
            rows, wanted, w = x[part], targets[part, None], weights[part, None]
            logits = (rows @ head.T).float()
            log_sum = logits.logsumexp(-1, keepdim=True)
            total += ((log_sum - logits.gather(1, wanted)) * w).sum()
            p = logits.sub_(log_sum).exp_().mul_(w)
            p.scatter_add_(1, wanted, -w)
            p = p.to(x.dtype)
            dx[part] = p @ head
            dhead += p.T @ rows
        ctx.save_for_backward(dx, dhead.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dhead = ctx.saved_tensors
        return dx * grads[0], dhead * grads[0], None, None, None
