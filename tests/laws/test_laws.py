"""The engine's laws: however a request is cut, shared, preempted or mixed, it gets the tokens that it gets alone.

Tokens and their log-probabilities are compared, so that an error too small to change a token is seen as well.
"""
from dataclasses import replace

import numpy as np
import pytest
from engines import BITWISE, prompts, requests, run, score, take

from gramme.request import Request, RequestError, SamplingParams


def alone(make, todo):
    out = {}
    for request in todo:
        out |= run(make(), [request])
    return out


def agree(make, got, want):
    if make.bitwise:
        assert got == want
    assert {k: a.tokens for k, a in got.items()} == {k: a.tokens for k, a in want.items()}
    for key in want:
        np.testing.assert_allclose(got[key].logprobs, want[key].logprobs, atol=2e-5)


def test_in_a_batch_of_16_as_alone(make):
    todo = requests(prompts(16))
    agree(make, run(make(), todo), alone(make, todo))


@pytest.mark.parametrize("chunk", [32, 33, 40])
def test_chunked_as_whole(make, chunk):
    todo = requests(prompts(6))
    agree(make, run(make(max_num_batched_tokens=chunk), todo), run(make(max_num_batched_tokens=4096), todo))


def test_prefix_hit_as_miss(make):
    middle = prompts(1, seed=9)[0][:20]
    heads = [[i] * 16 for i in range(4)]
    todo = requests(prompts(6, shared=40) + [head + middle for head in heads] + [middle])
    engine = make()
    first = run(engine, todo)
    hits = engine.stats().prefix_hit_tokens
    again = run(engine, todo)
    assert engine.stats().prefix_hit_tokens - hits > 6 * 36 + 4 * 32
    agree(make, again, first)
    agree(make, first, run(make(prefix_caching=False), todo))


def test_equal_prompts_with_other_salts_share_nothing(make):
    engine, prompt = make(), list(range(40))
    todo = [replace(r, cache_salt=salt) for r, salt in zip(requests([prompt] * 3), ("", "a", "b"), strict=True)]
    run(engine, todo)
    assert engine.stats().prefix_hit_tokens == 0
    run(engine, todo)
    assert engine.stats().prefix_hit_tokens == 3 * 36


def test_preempted_as_undisturbed(make):
    todo = requests(prompts(12))
    tight = make(kv_tokens=256)
    agree(make, run(tight, todo), run(make(), todo))
    assert tight.stats().preemptions > 0


@pytest.mark.parametrize("make", BITWISE, indirect=True)
@pytest.mark.parametrize("ahead", [False, True])
def test_32_streams_in_half_the_pages_as_32_separate_runs(make, ahead):
    todo = requests(prompts(32, seed=1, longest=100), max_tokens=60)
    need = sum(-(-(len(r.prompt_token_ids) + 59) // 4) for r in todo)
    tight = make(kv_tokens=need // 2 * 4, run_ahead=ahead, max_num_batched_tokens=64)
    got = run(tight, todo)
    assert tight.stats().preemptions > 0 and tight.stats().spent.recomputed_tokens > 0
    agree(make, got, run(make(max_num_seqs=1, prefix_caching=False), todo))


def test_run_ahead_as_not(make):
    todo = requests(prompts(8)) + [replace(r, id="p" + r.id) for r in requests(prompts(4), repetition_penalty=1.2)]
    agree(make, run(make(run_ahead=True), todo), run(make(run_ahead=False), todo))


def test_samples_of_one_prompt_as_separate_requests_share_its_pages(make):
    engine, prompt = make(), prompts(1)[0] * 3
    todo = Request(id="a", prompt_token_ids=prompt, params=SamplingParams(n=4, seed=5, max_tokens=12, logprobs=0))
    out = run(engine, [todo])
    assert len({tuple(answer.tokens) for answer in out.values()}) == 4, "samples must differ"
    assert engine.stats().prefix_hit_tokens >= 3 * (len(prompt) // 4 - 1) * 4
    first = run(make(), [replace(todo, params=replace(todo.params, n=1))])
    agree(make, {("a", 0): out["a", 0]}, first)


def test_decoding_says_what_prefilling_says(make):
    engine = make()
    todo = Request(id="a", prompt_token_ids=prompts(1)[0],
                   params=SamplingParams(temperature=0, max_tokens=30, logprobs=0))
    decoded = run(engine, [todo])["a", 0]
    prefilled = score(engine, [*todo.prompt_token_ids, *decoded.tokens])[-30:]
    if make.bitwise:
        assert decoded.logprobs == prefilled
    np.testing.assert_allclose(decoded.logprobs, prefilled, atol=2e-5)


def test_what_needs_the_prompts_logits_or_states_takes_no_prefix_hit(make):
    engine, prompt = make(), prompts(1)[0] * 2
    run(engine, requests([prompt]))
    first = score(engine, prompt)
    assert score(engine, prompt) == first and len(first) == len(prompt) - 1
    engine.add(Request(id="e", prompt_token_ids=prompt, params=SamplingParams(), pooling="mean"))
    while engine.busy:
        engine.step()
    assert engine.stats().prefix_hit_tokens == 0


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
@pytest.mark.parametrize("ahead", [False, True])
def test_abort_leaves_the_pool_as_it_was_and_the_others_alone(make, steps, ahead):
    todo = requests(prompts(5))
    engine, out = make(run_ahead=ahead, max_num_batched_tokens=32), {}
    for request in todo:
        engine.add(request)
    for step in range(500):
        if step == steps:
            engine.abort("2")
        if engine.busy:
            take(engine, out)
    assert not engine.busy and engine.stats().pages_used == 0
    engine._pool.check_integrity()
    want = run(make(max_num_seqs=1), [r for r in todo if r.id != "2"])
    agree(make, {k: v for k, v in out.items() if k[0] != "2"}, want)


def test_an_embedding_is_the_same_in_chunks_and_in_company(make):
    todo = [Request(id=str(i), prompt_token_ids=p, params=SamplingParams(), pooling=("mean", "last")[i % 2])
            for i, p in enumerate(prompts(6))]

    def embed(engine):
        for request in todo:
            engine.add(request)
        return {u.id: u.embedding for _ in range(200) for u in (engine.step() if engine.busy else []) if u.embedding}

    whole, chunked = embed(make(max_num_batched_tokens=4096)), embed(make(max_num_batched_tokens=32))
    assert whole.keys() == chunked.keys() == {r.id for r in todo}
    for key in whole:
        np.testing.assert_allclose(whole[key], chunked[key], atol=1e-5)


@pytest.mark.parametrize("prompt, params, words", [
    ([], {}, "empty"), ([199], {}, "0 to 198"), ([-1], {}, "0 to 198"), ([1] * 256, {}, "256"),
    ([1], {"logit_bias": {199: 1.0}}, "199"), ([1], {"stop_token_ids": [200]}, "200"),
])
def test_a_bad_request_is_refused_with_the_numbers_and_nothing_is_left(make, prompt, params, words):
    engine = make()
    with pytest.raises(RequestError, match=words):
        engine.add(Request(id="a", prompt_token_ids=prompt, params=SamplingParams(**params)))
    assert not engine.busy and not engine.scheduler.waiting
