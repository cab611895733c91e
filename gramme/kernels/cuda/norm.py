"""Norms and activation functions in Triton: one program a token. Knows no weight and no page."""
import torch
import triton
import triton.language as tl
from torch import Tensor

from gramme.kernels import eager
from gramme.kernels.cuda.act import Act, group_of, new_act, parts, passing, store_floats, store_integers
from gramme.kernels.cuda.launch import launch
from gramme.kernels.ops import Permuted


@triton.jit
def _store_row(h, t, out, scales, sums, places, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr):
    row = t + tl.arange(0, 1)
    h = tl.reshape(h, (1, BLOCK))
    if G == 0:
        k = tl.arange(0, BLOCK)[None, :]
        store_floats(h, row, k, k < K, out, places, K)
    else:
        store_integers(h, row, 0, row == t, out, scales, sums, K, 1, BLOCK, G)


@triton.jit
def add_norm_kernel(x, r, total, gain, eps, out, scales, sums, places, K: tl.constexpr, BLOCK: tl.constexpr,
                    G: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    h = tl.load(x + t * K + k, mask=k < K, other=0).to(tl.float32)
    if r is not None:
        h += tl.load(r + t * K + k, mask=k < K, other=0).to(tl.float32)
        tl.store(total + t * K + k, h, mask=k < K)
    h *= 1 / tl.sqrt(tl.sum(h * h, 0) / K + eps)
    _store_row(h * tl.load(gain + k, mask=k < K, other=0), t, out, scales, sums, places, K, BLOCK, G)


@triton.jit
def swiglu_kernel(x, out, scales, sums, places, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    gate = tl.load(x + t * 2 * K + k, mask=k < K, other=0).to(tl.float32)
    up = tl.load(x + t * 2 * K + K + k, mask=k < K, other=0).to(tl.float32)
    _store_row(gate / (1 + tl.exp(-gate)) * up, t, out, scales, sums, places, K, BLOCK, G)


@triton.jit
def quantise_kernel(x, out, scales, sums, places, K: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    h = tl.load(x + t * K + k, mask=k < K, other=0).to(tl.float32)
    _store_row(h, t, out, scales, sums, places, K, BLOCK, G)


def add_norm(x: Tensor, r: Tensor | None, gain: Tensor, eps: float, act: str | Permuted) -> tuple[Act, Tensor]:
    form, places = passing(act, x.shape[1]) or ("float", None)
    h = new_act(x.shape, x.dtype, x.device, form)
    total = x if r is None else torch.empty_like(x)
    launch(add_norm_kernel, (len(x),), x, r, total, gain, eps, *_output(h, places, x.shape[1], form),
           num_warps=_warps(x.shape[1]))
    return finished(h, act), total


def quantise(x: Tensor, act: str | Permuted) -> Act:
    if isinstance(act, Permuted):
        return quantise(eager.quantise(x, act._replace(act="float")), act.act)
    if act == "float":
        return x
    h = new_act(x.shape, x.dtype, x.device, act)
    launch(quantise_kernel, (len(x),), x, *_output(h, None, x.shape[1], act), num_warps=_warps(x.shape[1]))
    return h


def swiglu(x: Tensor, act: str | Permuted) -> Act:
    """(T, 2F), the gate first -> Act (T, F)."""
    k = x.shape[1] // 2
    form, places = passing(act, k) or ("float", None)
    h = new_act((len(x), k), x.dtype, x.device, form)
    launch(swiglu_kernel, (len(x),), x, *_output(h, places, k, form), num_warps=_warps(k))
    return finished(h, act)


def finished(h: Act, act: str | Permuted) -> Act:
    """What a kernel wrote that could not write that form itself, in that form."""
    plain = isinstance(h, Tensor) and (act.act if isinstance(act, Permuted) else act) != "float"
    return quantise(h, act) if plain else h


def _output(h: Act, places: Tensor | None, k: int, form: str) -> tuple:
    """The arguments with which the kernels here write an activation."""
    return *parts(h), places, k, triton.next_power_of_2(k), group_of(form)


def _warps(k: int) -> int:
    return min(max(triton.next_power_of_2(k) // 512, 1), 16)
