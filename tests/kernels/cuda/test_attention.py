"""Attention over pages against the reference: rows of any kind beside each other, windows, every form of a page."""
import numpy as np
import pytest
import torch

from gramme.kernels import reference
from gramme.kernels.cuda import norm
from gramme.kernels.cuda.attention import attend_pages
from gramme.kernels.ops import KV
from gramme.plan.gpu_memory import LOCKS, SCRATCH_VALUES, attention_splits
from tests.kernels.cuda.close import TOLERANCE, worst_row
from tests.kernels.cuda.steps import on, random_step

PROCESSORS = 4
MIXED = [(0, 7), (30, 1), (5, 3), (0, 1)]  # a whole prompt, decoding, verification, a prompt of one token
LONG = [(700, 1), (299, 2)]


def case(device, rows, heads, kv_heads, head_dim, size, dtype="float32", form=None, seed=0):
    """(q, kv, step) on the device, and the same as float32 numpy with pages as they were stored."""
    r = np.random.default_rng(seed)
    step, pages = random_step(rows, size, seed)
    kind = getattr(torch, form or dtype)
    q = torch.tensor(r.standard_normal((len(step.tokens), heads, head_dim)), dtype=getattr(torch, dtype), device=device)
    k, v = torch.tensor(r.standard_normal((2, pages, kv_heads, size, head_dim)), device=device)
    if form == "int8":
        scales = torch.tensor(r.uniform(0.01, 0.05, (2, pages, kv_heads, size)), device=device).half()
        kv = KV(*((a * 30).to(kind) for a in (k, v)), *scales)
        plain = [(a.float() * s.float()[..., None]).cpu().numpy() for a, s in ((kv.k, kv.k_scale), (kv.v, kv.v_scale))]
    else:
        kv = KV(k.to(kind), v.to(kind))
        plain = [a.float().cpu().numpy() for a in kv[:2]]
    return (q, kv, on(device, step)), (q.float().cpu().numpy(), KV(*plain), step)


def run(device, q, kv, step, window, fixed=False, output=()):
    scratch = torch.full((PROCESSORS * SCRATCH_VALUES,), float("nan"), device=device)
    locks = torch.zeros(PROCESSORS * LOCKS, dtype=torch.int32, device=device)
    out = attend_pages(q, kv, step, window, scratch, locks, PROCESSORS, fixed, *output)
    assert not locks.any(), "a lock was left closed"
    return out.view(q.shape) if torch.is_tensor(out) else out


def want(q, kv, step, window):
    """The reference writes k and v first; here they stand in the pages already."""
    size = kv.k.shape[2]
    k, v = (a[step.slots // size, :, step.slots % size] for a in kv[:2])
    return reference.attend(q, k, v, kv, step, window, "float").reshape(q.shape)


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 2, 12), (7, 1, 16), (3, 3, 20), (12, 2, 8)])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_any_kind(device, heads, kv_heads, head_dim, window, fixed):
    there, here = case(device, MIXED, heads, kv_heads, head_dim, 4)
    assert worst_row(run(device, *there, window, fixed), want(*here, window)) < TOLERANCE["float32"]


@pytest.mark.parametrize("rows", [LONG, [(900, 1)], [(0, 150)], [(130, 40), (0, 1)]])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("fixed", [False, True])
def test_long_contexts_are_split_and_merged(device, rows, window, fixed):
    there, here = case(device, rows, 4, 2, 16, 16)
    assert worst_row(run(device, *there, window, fixed), want(*here, window)) < TOLERANCE["float32"]


def test_a_single_long_row_is_split_in_both_modes():
    assert all(attention_splits(1, 64 * 34, 4096, PROCESSORS, fixed) > 1 for fixed in (False, True))


@pytest.mark.parametrize("dtype, form", [
    ("float16", None), ("bfloat16", None), ("float32", "float8_e4m3fn"), ("bfloat16", "float8_e4m3fn"),
    ("float16", "float8_e4m3fn"), ("float32", "int8"), ("float16", "int8"), ("bfloat16", "int8"),
])
def test_every_form_of_a_page(device, dtype, form):
    there, here = case(device, [*MIXED, (280, 1)], 4, 2, 16, 16, dtype, form)
    got, right = run(device, *there, None).flatten(1), want(*here, None)  # a row is a token with all of its heads
    assert worst_row(got, right.reshape(got.shape)) < TOLERANCE[dtype]


def test_fixed_splits_give_a_token_the_same_bits_alone_and_in_company_chunked_and_whole(device):
    (q, kv, step), _ = case(device, [(540, 60)], 2, 1, 16, 16)
    whole = run(device, q, kv, step, 300, fixed=True)
    for first, last in ((59, 60), (3, 40), (15, 60)):
        part, _ = random_step([(540 + first, last - first)], 16)
        part = on(device, part)
        table = step.pages[:, : part.pages.shape[1]].contiguous()
        part = type(part)(**{**vars(part), "pages": table})
        assert torch.equal(run(device, q[first:last].contiguous(), kv, part, 300, fixed=True), whole[first:last])


def test_padding_rows_and_rows_without_tokens_change_nothing(device):
    (q, kv, step), (hq, hkv, host) = case(device, MIXED, 4, 2, 16, 4)
    n, pad = len(q), 5
    ints = lambda values: torch.tensor(values, dtype=torch.int32, device=device)
    starts = torch.cat([step.starts, step.starts[-1] + ints([0, 1, 2, 3, 4, 5])])  # an empty row, then rows of page 0
    lengths = torch.cat([step.lengths, ints([1] * 6)])
    pages = torch.cat([step.pages, torch.zeros(6, step.pages.shape[1], dtype=torch.int32, device=device)])
    padded = type(step)(**{**vars(step), "starts": starts, "lengths": lengths, "pages": pages, "max_row": n + pad})
    out = run(device, torch.cat([q, q[:pad]]), kv, padded, None)
    assert worst_row(out[:n], want(hq, hkv, host, None)) < TOLERANCE["float32"]


@pytest.mark.parametrize("rows", [MIXED, LONG])
@pytest.mark.parametrize("form, head_dim", [("int8/32", 32), ("int8/32", 96), ("int8/16", 16)])
def test_it_quantises_what_it_would_have_answered(device, rows, form, head_dim):
    there, _ = case(device, rows, 6, 2, head_dim, 4)
    got, whole = run(device, *there, None, output=(form,)), run(device, *there, None)
    want = norm.quantise(whole.flatten(1), form)
    assert all(map(torch.equal, got[:3], want[:3]))


@pytest.mark.parametrize("rows", [MIXED, LONG])
def test_it_answers_in_another_order_of_columns(device, rows):
    there, _ = case(device, rows, 4, 2, 12, 4)
    places = torch.randperm(48, device=device)
    got, whole = run(device, *there, None, output=("float", places.int())), run(device, *there, None)
    assert torch.equal(got.flatten(1)[:, places], whole.flatten(1))
