"""Norms, activation functions and their quantised forms against the reference, on ugly widths."""
import numpy as np
import pytest
import torch

from gramme.kernels import reference
from gramme.kernels.cuda import norm
from gramme.kernels.ops import Permuted
from tests.kernels.cuda.close import TOLERANCE, worst_row

SHAPES = [(1, 5), (3, 123), (7, 64), (2, 1000)]


def arrays(tokens, k, dtype, device, count=2):
    """Random arrays as torch has them in that type, and the same values as float32 numpy."""
    r = np.random.default_rng(tokens * k)
    torchs = [torch.tensor(r.standard_normal((tokens, k)) * 3, dtype=getattr(torch, dtype), device=device)
              for _ in range(count)]
    return torchs, [a.float().cpu().numpy() for a in torchs]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens, k", SHAPES)
@pytest.mark.parametrize("residual", [False, True])
def test_add_norm(device, dtype, tokens, k, residual):
    (x, r), (hx, hr) = arrays(tokens, k, dtype, device)
    gain = np.random.default_rng(1).normal(1, 0.3, k).astype(np.float32)
    h, total = norm.add_norm(x, r if residual else None, torch.tensor(gain, device=device), 1e-5, "float")
    want, want_total = reference.add_norm(hx, hr if residual else None, gain, 1e-5, "float")
    assert worst_row(h, want) < TOLERANCE[dtype]
    assert worst_row(total, want_total) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens, k", SHAPES)
def test_swiglu(device, dtype, tokens, k):
    (x,), (hx,) = arrays(tokens, 2 * k, dtype, device, 1)
    want = reference.gate_up(hx, np.eye(2 * k, dtype=np.float32), None, "float")
    assert worst_row(norm.swiglu(x, "float"), want) < TOLERANCE[dtype]


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("tokens, groups", [(1, 1), (3, 3), (2, 5)])
def test_integers_are_the_references_own(device, group, tokens, groups):
    (x,), (hx,) = arrays(tokens, groups * group, "float32", device, 1)
    x[0, :group], hx[0, :group] = 0, 0
    got, want = norm.quantise(x, f"int8/{group}"), reference.quantise(hx, f"int8/{group}")
    np.testing.assert_array_equal(got.values.cpu().numpy(), want.values)
    np.testing.assert_allclose(got.scales.cpu().numpy(), want.scales, rtol=1e-6)
    np.testing.assert_allclose(got.sums.cpu().numpy(), want.sums, rtol=1e-6)


def test_a_norm_and_an_activation_function_quantise_what_they_would_have_answered(device):
    (x, r), _ = arrays(3, 192, "float32", device)
    gain = torch.rand(192, device=device)
    whole, parts = norm.add_norm(x, r, gain, 1e-5, "float")[0], norm.add_norm(x, r, gain, 1e-5, "int8/32")[0]
    assert torch.equal(parts.values, norm.quantise(whole, "int8/32").values)
    assert torch.equal(norm.swiglu(x, "int8/32").values, norm.quantise(norm.swiglu(x, "float"), "int8/32").values)


@pytest.mark.parametrize("form", ["float", "int8/32"])
def test_another_order_of_columns_is_the_form_of_the_reordered_activation(device, form):
    (x, r), _ = arrays(3, 64, "float32", device)
    gain, order = torch.rand(64, device=device), torch.randperm(64, device=device)
    act, same = Permuted(form, order.int(), order.argsort().int()), lambda a, b: all(map(torch.equal, a[:3], b[:3]))
    normed = norm.add_norm(x, r, gain, 1e-5, "float")[0]
    assert same(norm.add_norm(x, r, gain, 1e-5, act)[0], norm.quantise(normed[:, order], form))
    wide = torch.cat([x, r], -1)
    assert same(norm.swiglu(wide, act), norm.quantise(norm.swiglu(wide, "float")[:, order], form))
