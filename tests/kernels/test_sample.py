"""The op that samples: each step's distribution against a plain one, samples against it by a chi-square test."""
import numpy as np
import pytest

from gramme.kernels.ops import Edits, Sampling
from gramme.kernels.reference import sample

V = 40


def params(n, u, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0, **more):
    full = lambda x, dtype: np.full(n, x, dtype)
    return Sampling(full(temperature, np.float32), full(top_p, np.float32), full(min_p, np.float32),
                    full(top_k, np.int32), u, **more)


def plain(logits, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0):
    """The distribution by the book: one token at a time, no vectors."""
    p = np.exp(np.array(logits, np.float64) / temperature)
    p /= p.sum()
    kept = [i for i in range(len(p)) if p[i] >= min_p * p.max()]
    kept = sorted(kept, key=lambda i: (-p[i], i))[: top_k or None]
    total, mass, out = sum(p[i] for i in kept), 0.0, []
    for i in kept:
        out.append(i)
        mass += p[i]
        if mass >= top_p * total:
            break
    q = np.zeros(len(p))
    q[out] = p[out]
    return q / q.sum()


CASES = [{}, {"temperature": 0.5}, {"temperature": 1.7, "top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1},
         {"temperature": 1.3, "min_p": 0.02, "top_k": 20, "top_p": 0.9}, {"top_k": 1}]


@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_plain_distribution(case):
    r, n = np.random.default_rng(0), 20_000
    logits = r.normal(0, 2, V).astype(np.float32)
    want = plain(logits, **case)
    u = (np.arange(n) + r.random()) / n % 1.0
    counts = np.bincount(sample(np.tile(logits, (n, 1)), params(n, u, **case)).tokens, minlength=V)
    assert not counts[want == 0].any()
    likely = want > 0
    chi2 = ((counts[likely] - n * want[likely]) ** 2 / (n * want[likely])).sum()
    assert chi2 < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_u_picks_the_first_token_whose_cumulative_probability_exceeds_it():
    logits = np.log(np.array([[0.1, 0.4, 0.3, 0.2]], np.float32))
    pick = lambda u: int(sample(logits, params(1, np.array([u]))).tokens[0])
    assert [pick(u) for u in (0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999999)] == [1, 1, 2, 2, 3, 3, 0, 0]


def test_edits_come_in_vllms_order_and_before_the_choice():
    logits = np.array([[2.0, -1.0, 0.5, 0.4]], np.float32)
    edits = Edits(np.zeros(2, np.int32), np.array([0, 1], np.int32), np.array([1, 0], np.float32),
                  np.array([2, 2], np.float32), np.array([0.25, 0], np.float32))
    s = params(1, np.zeros(1), temperature=0.0, edits=edits, logprobs=True, top=4, processed=np.ones(1, bool))
    out = sample(logits, s)
    want = np.array([(2 + 1) / 2 - 0.25, -2, 0.5, 0.4])
    want -= np.log(np.exp(want).sum())
    np.testing.assert_allclose(out.top_logprobs[0], np.sort(want)[::-1], atol=1e-6)


def test_a_mask_forces_the_choice_and_the_logprob_stays_the_raw_one():
    logits = np.random.default_rng(0).normal(size=(1, V)).astype(np.float32)
    mask = np.zeros((1, 2), np.uint32)
    mask[0, 1] = 1 << 3  # token 35
    out = sample(logits, params(1, np.zeros(1), mask=mask, logprobs=True))
    want = logits[0] - np.log(np.exp(logits[0]).sum())
    assert out.tokens[0] == 35
    np.testing.assert_allclose(out.logprobs[0], want[35], atol=1e-6)
    assert out.ranks[0] == 1 + (logits[0] > logits[0, 35]).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_minus_one_and_harms_no_other(bad, temperature):
    logits = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
    clean = sample(logits, params(3, np.full(3, 0.5), temperature=temperature)).tokens
    logits[1, 7] = bad
    got = sample(logits, params(3, np.full(3, 0.5), temperature=temperature)).tokens
    assert got.tolist() == [clean[0], -1, clean[2]]
