"""Heads on their way into pages: norm, rope and every form of a page, against the reference."""
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from gramme.kernels import reference
from gramme.kernels.cuda.heads import from_float8, head_norm, place, rope, to_float8
from gramme.kernels.ops import KV
from tests.kernels.cuda.close import TOLERANCE, worst_row
from tests.kernels.cuda.steps import on, random_step

ROWS = [(3, 4), (0, 1), (17, 2)]


def heads(device, dtype, head_dim, seed=0):
    """q, k and v as a projection gives them: views of one array."""
    r = np.random.default_rng(seed)
    y = torch.tensor(r.standard_normal((7, 3 + 2 * 2, head_dim)), dtype=getattr(torch, dtype), device=device)
    return y[:, :3], y[:, 3:5], y[:, 5:]


def empty_pages(pages, head_dim, dtype, device, size=4):
    k, v = torch.zeros(2, pages, 2, size, head_dim, device=device).to(getattr(torch, dtype))
    scales = torch.zeros(2, pages, 2, size, dtype=torch.float16, device=device) if dtype == "int8" else (None, None)
    return KV(k, v, *scales)


def read(pages, scales, slots):
    """(T, Hk, Dh) float32: what the pages hold at these slots."""
    size = pages.shape[2]
    values = pages.float()[slots // size, :, slots % size]
    return values if scales is None else values * scales.float()[slots // size, :, slots % size][..., None]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [12, 16, 20])
@pytest.mark.parametrize("normed", [False, True])
def test_norm_rope_and_write(device, dtype, head_dim, normed):
    step, pages = random_step(ROWS, 4)
    r = np.random.default_rng(head_dim)
    table = r.standard_normal((32, head_dim)).astype(np.float32)
    gains = r.normal(1, 0.3, (2, head_dim)).astype(np.float32)
    q, k, v = heads(device, dtype, head_dim)
    want_q, want_k = (a.float().cpu().numpy() for a in (q, k))
    if normed:
        want_q, want_k = (reference.rms_norm(a, g, 1e-5) for a, g in zip((want_q, want_k), gains))
        q, k = (head_norm(a, torch.tensor(g, device=device), 1e-5) for a, g in zip((q, k), gains))
    want_q, want_k = (reference.rope(a, table, step.positions) for a in (want_q, want_k))
    there, kv = on(device, step), empty_pages(pages, head_dim, dtype, device)
    q, k = (rope(a, torch.tensor(table, device=device), there.positions) for a in (q, k))
    assert worst_row(place(q, k, v, kv, there.slots), want_q) < TOLERANCE[dtype]
    assert worst_row(read(kv.k, None, there.slots), want_k) < TOLERANCE[dtype]
    assert torch.equal(read(kv.v, None, there.slots), v.float())
    assert worst_row(q.made(), want_q) < TOLERANCE[dtype]
    assert not kv.k[0].any() and not kv.v[0].any(), "page 0 was written"


def test_int8_pages_hold_each_head_by_its_largest_value(device):
    step, pages = random_step(ROWS, 4)
    q, k, v = heads(device, "float32", 16)
    k[2, 1] = 0
    there, kv = on(device, step), empty_pages(pages, 16, "int8", device)
    place(rope(q, None, None), rope(k, None, None), v, kv, there.slots)
    for want, pages, scales in ((k, kv.k, kv.k_scale), (v, kv.v, kv.v_scale)):
        error = (read(pages, scales, there.slots) - want).abs()
        assert (error <= want.abs().amax(-1, keepdim=True) * (0.5 / 127 + 2**-11) + 1e-9).all()


def test_float8_pages_hold_the_nearest_values(device):
    step, pages = random_step(ROWS, 4)
    q, k, v = heads(device, "float32", 16)
    v *= 200
    there, kv = on(device, step), empty_pages(pages, 16, "float8_e4m3fn", device)
    place(rope(q, None, None), rope(k, None, None), v, kv, there.slots)
    nearest = lambda a: a.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(read(kv.k, None, there.slots), nearest(k))
    assert torch.equal(read(kv.v, None, there.slots), nearest(v))


@triton.jit
def round_trip(x, codes, back, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    c = to_float8(tl.load(x + i, mask=i < n, other=0))
    tl.store(codes + i, c, mask=i < n)
    tl.store(back + i, from_float8(tl.load(codes + i, mask=i < n, other=0)), mask=i < n)


def test_every_float8_and_every_tie_between_two_is_rounded_as_torch_does(device):
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = values[values.isfinite()].sort().values
    ties = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, ties, ties * 1.0001, ties * 0.9999, torch.tensor([1e9, -1e9, float("nan")])]).to(device)
    codes, back = torch.empty(len(x), dtype=torch.uint8, device=device), torch.empty(len(x), device=device)
    round_trip[(1,)](x, codes, back, len(x), triton.next_power_of_2(len(x)))
    want = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(back.nan_to_num(1234), want.nan_to_num(1234))
    assert torch.equal(codes.view(torch.float8_e4m3fn).float().nan_to_num(1234), want.nan_to_num(1234))
