"""Choosing tokens in one kernel: the reference's own choice, ties and all; what is reported about it."""
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from gramme.kernels import reference
from gramme.kernels.cuda.sample import sample
from gramme.kernels.ops import Edits, Sampling

V = 41


def sampling(n, seed=0, **columns):
    r = np.random.default_rng(seed)
    column = lambda name, default, dtype: np.broadcast_to(np.asarray(columns.pop(name, default), dtype), n).copy()
    s = Sampling(column("temperature", 1, np.float32), column("top_p", 1, np.float32), column("min_p", 0, np.float32),
                 column("top_k", 0, np.int32), column("u", r.random(n), np.float64))
    return replace(s, **columns)


def on(device, s):
    put = lambda a: torch.tensor(a, device=device) if isinstance(a, np.ndarray) else a
    values = {f.name: put(getattr(s, f.name)) for f in fields(s)}
    return Sampling(**{**values, "edits": None if s.edits is None else Edits(*map(put, s.edits))})


def logits(n, seed=0, ties=False):
    x = np.random.default_rng(seed).normal(0, 2, (n, V)).astype(np.float32)
    return np.round(x) if ties else x


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [
    {}, {"temperature": [0, 0.5, 1.7]}, {"top_k": [1, 7, 100]}, {"top_p": [0.1, 0.8, 0.99]}, {"min_p": [0.0, 0.1, 1.0]},
    {"temperature": [1.3, 0.7, 1], "min_p": 0.02, "top_k": [20, 5, 2], "top_p": [0.9, 0.5, 0.3]},
    {"u": [0, 0.5, 1 - 1e-9]},
], ids=str)
def test_the_token_is_the_references(device, columns, ties):
    x, s = logits(3, 1, ties), sampling(3, **columns)
    got = sample(torch.tensor(x, device=device), on(device, s)).tokens
    np.testing.assert_array_equal(got.cpu().numpy(), reference.sample(x, s).tokens)


def test_equal_logits_are_drawn_evenly_and_by_id(device):
    n = 8
    s = sampling(n, u=(np.arange(n) + 0.5) / n, top_k=n)
    got = sample(torch.zeros(n, V, device=device), on(device, s)).tokens
    np.testing.assert_array_equal(got.cpu().numpy(), np.arange(n))


def edited(n, seed=0, **more):
    """A mask that allows about half of the tokens, and some edits."""
    r = np.random.default_rng(seed)
    bits = np.zeros((n, 64), bool)
    bits[:, :V] = r.random((n, V)) < 0.5
    bits[:, 3] = True
    mask = np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)
    edits = Edits(np.array([0, 0, n - 1], np.int32), np.array([3, 9, 3], np.int32), np.array([1, -2, 30], np.float32),
                  np.array([1.2, 2, 1], np.float32), np.array([0.5, np.inf, 0], np.float32))
    return sampling(n, mask=mask, edits=edits, **more)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_edits_and_reports(device, temperature, dtype):
    x = torch.tensor(logits(3, 4), device=device).to(getattr(torch, dtype))
    s = edited(3, temperature=temperature, logprobs=True, top=4, processed=np.array([False, True, True]))
    got, want = sample(x, on(device, s)), reference.sample(x.float().cpu().numpy(), s)
    np.testing.assert_array_equal(got.tokens.cpu().numpy(), want.tokens)
    np.testing.assert_array_equal(got.ranks.cpu().numpy(), want.ranks)
    np.testing.assert_array_equal(got.top_ids.cpu().numpy(), want.top_ids)
    np.testing.assert_allclose(got.logprobs.cpu().numpy(), want.logprobs, atol=1e-5)
    np.testing.assert_allclose(got.top_logprobs.cpu().numpy(), want.top_logprobs, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_that_is_not_finite_is_minus_one_and_harms_no_other(device, bad, temperature, masked):
    x = logits(3)
    s = (edited if masked else sampling)(3, temperature=temperature)
    clean = reference.sample(x, s).tokens
    x[1, 7] = bad
    got = sample(torch.tensor(x, device=device), on(device, s)).tokens
    assert got.tolist() == [clean[0], -1, clean[2]]


def test_nothing_allowed_is_minus_one(device):
    s = sampling(1, mask=np.zeros((1, 2), np.uint32))
    assert sample(torch.zeros(1, V, device=device), on(device, s)).tokens.tolist() == [-1]
