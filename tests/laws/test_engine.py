"""The engine's laws: however a request is cut, shared, preempted or mixed, it gets the tokens that it gets alone."""
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.kernels.load import backend
from gramme.llm.engine import Engine
from gramme.models.load import build, random_source
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import Request, RequestError, SamplingParams
from gramme.runtime.runner import Runner

MODEL = ModelConfig(family="llama", vocab_size=199, width=48, layers=2, heads=4, kv_heads=2, head_dim=12, ff_width=80,
                    norm_eps=1e-5, max_positions=256, qk_norm=True, qkv_bias=True, windows=(None, 24))
BACKENDS = ["reference", *([pytest.param("eager", marks=pytest.mark.torch)] if find_spec("torch") else [])]


@pytest.fixture(params=BACKENDS)
def make(request):
    """An engine on random weights; keyword arguments are EngineConfig's."""
    decoder = build(MODEL, random_source(MODEL, 3), backend(request.param), "float32", 256)

    def engine(**options):
        config = EngineConfig(**(dict(backend=request.param, page_size=4, kv_tokens=4096, max_num_seqs=32) | options))
        decided = plan(MODEL, config, Hardware(cores=1, free_bytes=1 << 32))
        return Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, decoder, backend(request.param)))

    return engine


def prompts(count, seed=0, shared=0):
    r = np.random.default_rng(seed)
    head = r.integers(0, 199, shared).tolist()
    return [head + r.integers(0, 199, r.integers(1, 60)).tolist() for _ in range(count)]


def requests(all_prompts, **params):
    """Every second one is greedy, the others are sampled with a seed of their own."""
    return [Request(id=str(i), prompt_token_ids=p, params=SamplingParams(
        max_tokens=24, temperature=0.9 * (i % 2), top_p=0.9, seed=i, **params)) for i, p in enumerate(all_prompts)]


def run(engine, todo):
    """(id, index) -> tokens"""
    out = {}
    for request in todo:
        engine.add(request)
    while engine.busy:
        for u in engine.step():
            out.setdefault((u.id, u.index), []).extend(u.token_ids)
    assert engine.stats().pages_used == 0, "pages leaked"
    engine._pool.check_integrity()
    return out


def alone(make, todo):
    out = {}
    for request in todo:
        out |= run(make(), [request])
    return out


def test_in_a_batch_of_16_as_alone(make):
    todo = requests(prompts(16))
    assert run(make(), todo) == alone(make, todo)


@pytest.mark.parametrize("chunk", [32, 33, 40])
def test_chunked_as_whole(make, chunk):
    todo = requests(prompts(6))
    assert run(make(max_num_batched_tokens=chunk), todo) == run(make(max_num_batched_tokens=4096), todo)


def test_prefix_hit_as_miss(make):
    todo, engine = requests(prompts(6, shared=40)), make()
    first = run(engine, todo)
    hits = engine.stats().prefix_hit_tokens
    assert run(engine, todo) == first == run(make(prefix_caching=False), todo)
    assert engine.stats().prefix_hit_tokens - hits > 6 * 36


def test_preempted_as_undisturbed(make):
    todo = requests(prompts(12))
    tight = make(kv_tokens=256)
    assert run(tight, todo) == run(make(), todo)
    assert tight.stats().preemptions > 0


def test_run_ahead_as_not(make):
    todo = requests(prompts(8)) + [replace(r, id="p" + r.id) for r in requests(prompts(4), repetition_penalty=1.2)]
    assert run(make(run_ahead=True), todo) == run(make(), todo)


def test_samples_of_one_prompt_as_separate_requests_share_its_pages(make):
    engine, prompt = make(), prompts(1)[0] * 3
    todo = Request(id="a", prompt_token_ids=prompt, params=SamplingParams(n=4, seed=5, max_tokens=12))
    out = run(engine, [todo])
    assert len({tuple(tokens) for tokens in out.values()}) == 4, "samples must differ"
    assert engine.stats().prefix_hit_tokens >= 3 * (len(prompt) // 4 - 1) * 4


def test_decoding_says_what_prefilling_says(make):
    params = SamplingParams(temperature=0, max_tokens=30, logprobs=0)
    request = Request(id="a", prompt_token_ids=prompts(1)[0], params=params)
    engine = make()
    engine.add(request)
    tokens, decoded = [], []
    while engine.busy:
        for u in engine.step():
            tokens += u.token_ids
            decoded += [scores[t].logprob for t, scores in zip(u.token_ids, u.logprobs, strict=True)]
    full = [*request.prompt_token_ids, *tokens]
    engine.add(Request(id="b", prompt_token_ids=full, params=SamplingParams(max_tokens=0, prompt_logprobs=0)))
    scores = next(u.prompt_logprobs for _ in range(99) for u in engine.step() if u.prompt_logprobs)
    prefilled = [scores[i][t].logprob for i, t in enumerate(full) if i >= len(request.prompt_token_ids)]
    np.testing.assert_allclose(decoded, prefilled, atol=2e-5)


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
        for u in engine.step() if engine.busy else []:
            out.setdefault((u.id, u.index), []).extend(u.token_ids)
    assert not engine.busy and engine.stats().pages_used == 0
    want = alone(make, [r for r in todo if r.id != "2"])
    assert {k: v for k, v in out.items() if k[0] != "2"} == want


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
