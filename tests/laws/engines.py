"""Engines on random weights over every backend present, requests for them, and running those to their end."""
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from exact import exact

from gramme.config import ConfigError, EngineConfig, GenerationDefaults, ModelConfig
from gramme.kernels.load import backend
from gramme.llm.engine import Engine
from gramme.models.load import build, random_source
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import Request, SamplingParams
from gramme.runtime.runner import Runner

MODEL = ModelConfig(family="llama", vocab_size=199, width=48, layers=2, heads=4, kv_heads=2, head_dim=16, ff_width=80,
                    norm_eps=1e-5, max_positions=256, qk_norm=True, qkv_bias=True, windows=(None, 24))
MAX_STEPS = 5000  # more than any of these needs: a bug ends in a failure, not in a hang


def present(name):
    try:
        return bool(backend(name))
    except ConfigError:
        return False


BITWISE = ["exact", *filter(present, ["cpu"])]  # a row's result depends on its own input only, to the last bit
BACKENDS = [*BITWISE, *(pytest.param(name, marks=pytest.mark.torch) for name in ["eager"] if present(name))]


@cache
def decoder(name):
    kernels = exact() if name == "exact" else backend(name)
    return kernels, build(MODEL, random_source(MODEL, 3), kernels, "float32", 256)


def maker(name):
    """make(**options): an engine; keyword arguments are EngineConfig's. make.bitwise: whether equal means equal."""
    kernels, model = decoder(name)

    def make(**options):
        options = dict(kv_cache_dtype="float32", page_size=4, kv_tokens=4096, max_num_seqs=32) | options
        config = EngineConfig(backend=kernels.name, **options)
        decided = plan(MODEL, config, Hardware(cores=1, free_bytes=1 << 32))
        return Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, model, kernels))

    make.bitwise = name in BITWISE
    return make


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[float]


def prompts(count, seed=0, shared=0, longest=60):
    r = np.random.default_rng(seed)
    head = r.integers(0, 199, shared).tolist()
    return [head + r.integers(0, 199, r.integers(1, longest)).tolist() for _ in range(count)]


def requests(all_prompts, **params):
    """Every second one is greedy, the others are sampled with a seed of their own."""
    params = {"max_tokens": 24, "top_p": 0.9, "top_k": 8, "logprobs": 0} | params
    return [Request(id=str(i), prompt_token_ids=p, params=SamplingParams(temperature=0.9 * (i % 2), seed=i, **params))
            for i, p in enumerate(all_prompts)]


def take(engine, out):
    for u in engine.step():
        answer = out.setdefault((u.id, u.index), Answer([], []))
        answer.tokens.extend(u.token_ids)
        answer.logprobs.extend(scores[t].logprob for t, scores in zip(u.token_ids, u.logprobs or (), strict=True))


def run(engine, todo):
    """(id, index) -> Answer"""
    out = {}
    for request in todo:
        engine.add(request)
    for _ in range(MAX_STEPS):
        if engine.busy:
            take(engine, out)
    assert not engine.busy and engine.stats().pages_used == 0, "it does not end, or pages leaked"
    engine._pool.check_integrity()
    return out


def score(engine, tokens):
    """Log-probability of each prompt token but the first, given those before it."""
    engine.add(Request(id="scored", prompt_token_ids=tokens, params=SamplingParams(max_tokens=0, prompt_logprobs=0)))
    scores = next(u.prompt_logprobs for _ in range(99) for u in engine.step() if u.prompt_logprobs)
    return [scores[i][t].logprob for i, t in enumerate(tokens) if i]
