"""How a step is run changes nothing: padded to a captured size, or in halves when memory does not suffice."""
import math
from dataclasses import replace

import numpy as np
import pytest
from engines import MODEL, decoder, prompts, requests, run, score, take

from gramme.config import EngineConfig, GenerationDefaults
from gramme.kernels.load import backend
from gramme.kernels.ops import KV
from gramme.kernels.present import available
from gramme.kernels.reference import NumpyDevice
from gramme.llm.engine import Engine
from gramme.models.dummy import SHAPES
from gramme.models.load import build, random_source
from gramme.plan.gpu_memory import activation_bytes, captured_sizes, graph_bytes
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import Request, SamplingParams
from gramme.runtime.padded import PaddedGraphs
from gramme.runtime.runner import Runner


def engine(kernels, **options):
    model = build(MODEL, random_source(MODEL, 3), kernels, "float32", 256)
    config = EngineConfig(backend=kernels.name, kv_cache_dtype="float32",
                          **(dict(page_size=4, kv_tokens=4096, max_num_seqs=32, max_num_batched_tokens=64) | options))
    decided = plan(MODEL, config, Hardware(cores=1, free_bytes=1 << 32))
    return Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, model, kernels))


def padding(kernels):
    """A backend that pads, whose attention answers tokens of no row, and whose scratch page holds, large numbers."""
    def attend(q, k, v, kv: KV, step, window, act):
        out = np.full((len(q), q.shape[1] * q.shape[2]), 1e3, q.dtype)
        real = step.starts[-1]
        if real:
            out[:real] = kernels.ops.attend(q, k, v, kv, step, window, act)
        kv.k[0], kv.v[0] = 1e3, 1e3
        return out

    return replace(kernels, pads=True, ops=replace(kernels.ops, attend=attend))


def run_idle(e, todo):
    """As `run`, with an idle moment before and between requests."""
    out = run(e, todo[:1])
    while e.idle():
        pass
    for request in todo[1:]:
        e.add(request)
    while e.busy:
        take(e, out)
        e.idle()
    return out


@pytest.mark.parametrize("options", [{}, {"run_ahead": True}, {"kv_tokens": 256}, {"max_num_batched_tokens": 40}])
def test_padded_as_not(options):
    kernels, _ = decoder("exact")
    todo = requests(prompts(9, longest=20), max_tokens=12) + [
        replace(r, id="p" + r.id) for r in requests(prompts(3), max_tokens=12, repetition_penalty=1.2)]
    padded = engine(padding(kernels), **options)
    assert run_idle(padded, todo) == run(engine(kernels), todo)
    graphs = padded.runner.graphs
    every = captured_sizes(padded.plan.max_rows, padded.plan.max_batch_tokens)
    assert graphs.replayed > 8 and graphs.captured == len(every)


def test_nothing_is_captured_before_the_engine_is_idle_and_then_every_size_once():
    e = engine(padding(decoder("exact")[0]), max_num_seqs=5, max_num_batched_tokens=20)
    run(e, requests(prompts(2)))
    graphs = e.runner.graphs
    assert graphs.captured == graphs.replayed == 0
    assert e.idle() and graphs.captured == 1
    while e.idle():
        pass
    assert graphs.captured == len(captured_sizes(5, 20)) == 4 + 5  # 1, 2, 4, 8 rows of one token; 2 to 32 tokens


def test_captured_sizes_take_the_arrays_that_the_plan_counts():
    """Beside what lives inside a step: its inputs, and the two hidden states that each size leaves."""
    kernels, taken = decoder("exact")[0], []

    class Counting(NumpyDevice):
        def empty(self, shape, dtype):
            taken.append(math.prod(shape) * 4)
            return super().empty(shape, dtype)

    class Nothing:
        def hidden(self, step, kv):
            taken.append(2 * len(step.tokens) * MODEL.width * 4)
            return None, None

    decided = engine(kernels, max_num_seqs=5, max_num_batched_tokens=40, max_model_len=60).plan
    graphs = PaddedGraphs(Nothing(), None, Counting(), decided)
    while graphs.idle():
        pass
    whole = graph_bytes(MODEL, 4, -(-60 // 4), 5, 40)
    assert graphs.captured == 4 + 6 and sum(taken) == whole - activation_bytes(MODEL, 64, 4, False)


def test_a_size_without_memory_to_capture_it_is_run_uncaptured():
    kernels, _ = decoder("exact")
    todo = requests(without_150(prompts(6)), max_tokens=8, logit_bias={150: -100})
    poor = engine(padding(starved(kernels, 3)))
    while poor.idle():
        pass
    assert poor.runner.graphs.captured == 3 and poor.runner.graphs.refused > 3  # 1 and 2 tokens fit
    assert run(poor, todo) == run(engine(kernels), todo)


def starved(kernels, most):
    """A backend whose memory is gone in the second layer of a step of more than `most` tokens, or that holds 150."""
    def take_rows(packed, ids):
        if packed.shape[0] == MODEL.vocab_size and (len(ids) > most or 150 in ids):
            raise kernels.device.out_of_memory
        return kernels.ops.take(packed, ids)

    return replace(kernels, ops=replace(kernels.ops, take=take_rows))


def without_150(all_prompts):
    return [[149 if t == 150 else t for t in p] for p in all_prompts]


@pytest.mark.parametrize("most", [1, 7, 32])
@pytest.mark.parametrize("options", [{}, {"run_ahead": True}])
def test_a_step_without_memory_is_run_in_smaller_ones(most, options):
    kernels, _ = decoder("exact")
    todo = requests(without_150(prompts(6)), max_tokens=8, logit_bias={150: -100})
    poor, rich = engine(starved(kernels, most), **options), engine(kernels)
    assert run(poor, todo) == run(rich, todo)
    prompt = without_150(prompts(1, seed=3))[0]
    assert score(poor, prompt) == score(rich, prompt)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_without_memory_is_the_same(pooling):
    kernels, _ = decoder("exact")
    request = Request(id="a", prompt_token_ids=without_150(prompts(1))[0], params=SamplingParams(), pooling=pooling)

    def embed(e):
        e.add(request)
        return next(u.embedding for _ in range(99) for u in e.step() if u.embedding)

    np.testing.assert_allclose(embed(engine(starved(kernels, 5))), embed(engine(kernels)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"run_ahead": True}])
def test_what_does_not_fit_alone_fails_alone(options):
    kernels, _ = decoder("exact")
    todo = requests(without_150(prompts(5)), max_tokens=8, logit_bias={150: -100})
    bad = replace(todo[2], prompt_token_ids=[*todo[2].prompt_token_ids, 150, 7])
    e, out, errors = engine(starved(kernels, 99), **options), {}, {}
    for request in (*todo[:2], bad, *todo[3:]):
        e.add(request)
    for _ in range(200):
        for u in e.step() if e.busy else []:
            out.setdefault((u.id, u.index), []).extend(u.token_ids)
            if u.finish_reason == "error":
                errors[u.id] = u.error
    assert not e.busy and e.stats().pages_used == 0 and "memory" in errors.pop("2") and not errors
    want = {key: answer.tokens for key, answer in run(engine(kernels), todo).items() if key[0] != "2"}
    assert {key: tokens for key, tokens in out.items() if key[0] != "2"} == want


@pytest.mark.skipif("cpu" not in available(), reason="records no calls without compiled kernels")
@pytest.mark.parametrize("dtype, shape", [
    ("bfloat16", {"width": 256, "heads": 8, "kv_heads": 2, "head_dim": 32, "ff_width": 896}),  # as 7b, a sixteenth
    ("int4", {"width": 128, "heads": 4, "kv_heads": 4, "head_dim": 32, "ff_width": 128}),
    ("bfloat16", {"width": 128, "heads": 2, "kv_heads": 1, "head_dim": 32, "ff_width": 2048, "qk_norm": True}),
    ("int8", {"width": 128, "heads": 8, "kv_heads": 2, "head_dim": 64, "ff_width": 128, "qk_norm": True}),
    ("bfloat16", {"width": 384, "heads": 24, "kv_heads": 4, "head_dim": 32, "ff_width": 3072}),
])
def test_results_of_all_steps_find_room_in_what_is_held_when_the_engine_is_ready(dtype, shape):
    m = replace(SHAPES["tiny"], layers=4, vocab_size=64, max_positions=512, **shape)
    config = EngineConfig(backend="cpu", dtype=dtype, threads=2, max_num_seqs=16, max_num_batched_tokens=128)
    decided, kernels = plan(m, config, Hardware(cores=2, free_bytes=1 << 32)), backend("cpu", 2)
    decoder = build(m, random_source(m), kernels, dtype, decided.max_model_len)
    e = Engine(m, decided, GenerationDefaults(), Runner(m, decided, decoder, kernels))
    e.hold()
    for prompt in (500, 300, 64, 63, 40, 17, 3, 64, 63, 40, 17, 3):
        for i in range(2):
            e.add(Request(id=str(i), prompt_token_ids=[i] * prompt, params=SamplingParams(max_tokens=3 + i)))
        while e.busy:
            e.step()
    graphs = e.runner.graphs
    assert graphs.captured > 4 and graphs.replayed > 4
    assert not any(graph.replay.nbytes for graph in graphs._graphs.values() if graph is not None)
    assert kernels.device.kernels.arena.nbytes == 0
