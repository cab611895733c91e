"""What the host says about a choice, put through the op, is vLLM's documented order by the book, step by step."""
import math
import random

import numpy as np
import pytest

from gramme.kernels.reference import sample
from gramme.request import SamplingParams
from gramme.runtime.sampler import Choice, Chooser, sampling

V, EOS = 24, frozenset({3, 4})


def plain(logits, p, prompt, output, bad_words):
    """token -> logit before the choice: one token at a time, one rule at a time."""
    x = {t: float(value) for t, value in enumerate(logits)}
    banned = {t for t in x if p.allowed_token_ids is not None and t not in p.allowed_token_ids}
    history = prompt + output
    for *head, last in bad_words:
        if history[len(history) - len(head):] == head:
            banned.add(last)
    if len(output) < p.min_tokens:
        banned |= EOS | set(p.stop_token_ids)
    for t in x:
        x[t] += p.logit_bias.get(t, 0.0)
        if t in history:
            x[t] = x[t] / p.repetition_penalty if x[t] > 0 else x[t] * p.repetition_penalty
        x[t] -= p.frequency_penalty * output.count(t) + p.presence_penalty * (t in output)
    return {t: -math.inf if t in banned else value / (p.temperature or 1) for t, value in x.items()}


def random_case(r):
    maybe = lambda make, otherwise: make() if r.random() < 0.5 else otherwise
    some = lambda most: r.sample(range(V), r.randint(1, most))
    bad_words = maybe(lambda: [tuple(some(2)) for _ in range(3)], [])
    params = SamplingParams(
        temperature=maybe(lambda: r.uniform(0.2, 2), 0.0),
        logit_bias=maybe(lambda: {t: r.uniform(-5, 5) for t in some(5)}, {}),
        allowed_token_ids=maybe(lambda: some(V), None), repetition_penalty=maybe(lambda: r.uniform(0.5, 2), 1.0),
        frequency_penalty=maybe(lambda: r.uniform(-2, 2), 0.0), presence_penalty=maybe(lambda: r.uniform(-2, 2), 0.0),
        stop_token_ids=maybe(lambda: some(2), ()), min_tokens=r.choice([0, 0, 3, 30]), max_tokens=40, logprobs=20,
        logprobs_mode="processed")
    return params, [r.randrange(V) for _ in range(r.randint(1, 12))], bad_words


def reported(choices, logits):
    """What the op reports for each choice: token -> log-probability of the processed logits."""
    at = [len(c.tokens) for c in choices]
    out = sample(np.array(logits, np.float32), sampling(choices, at, V))
    pairs = zip(out.top_ids.tolist(), out.top_logprobs.tolist(), strict=True)
    return [dict(zip(ids, lps, strict=True)) for ids, lps in pairs]


@pytest.mark.parametrize("seed", range(100))
def test_every_steps_distribution_is_the_one_by_the_book(seed):
    """Several sequences in one call, each over several steps, so that counts are kept up."""
    r = random.Random(seed)
    cases = [random_case(r) for _ in range(3)]
    choosers = [Chooser(p, 0, 0, EOS, V, bad_words) for p, _, bad_words in cases]
    outputs = [[] for _ in cases]
    for _ in range(6):
        logits = np.random.default_rng(r.randrange(1 << 30)).normal(0, 2, (3, V)).astype(np.float32)
        choices = [Choice(c, prompt + out, len(prompt))
                   for c, (_, prompt, _), out in zip(choosers, cases, outputs, strict=True)]
        for i, got in enumerate(reported(choices, logits)):
            params, prompt, bad_words = cases[i]
            want = plain(logits[i], params, prompt, outputs[i], bad_words)
            if max(want.values()) == -math.inf:
                continue  # nothing is allowed
            total = math.log(sum(math.exp(x) for x in want.values()))
            for t, lp in got.items():
                assert lp == pytest.approx(want[t] - total, abs=2e-4), f"token {t} of sequence {i}"
        for out in outputs:
            out.append(r.randrange(V))


def test_a_draw_depends_on_seed_sample_and_position_alone():
    draw = lambda seed, index, position, **more: Chooser(SamplingParams(**more), index, seed, EOS, V).draw(position)
    assert draw(1, 0, 5) == draw(1, 0, 5, temperature=0.5, logprobs=3)
    assert len({draw(1, 0, 5), draw(2, 0, 5), draw(1, 1, 5), draw(1, 0, 6), draw(-1, 0, 5)}) == 5
    assert 0 <= min(draw(1, 0, i) for i in range(1000)) < 0.01 and 0.99 < max(draw(1, 0, i) for i in range(1000)) < 1


def test_draws_are_uniform():
    counts = np.bincount([int(20 * Chooser(SamplingParams(), i, s, EOS, V).draw(p))
                          for s in range(10) for i in range(4) for p in range(100)], minlength=20)
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 19 + 5 * (2 * 19) ** 0.5
