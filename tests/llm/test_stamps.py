"""The parts of a time to first token: they add up, they follow each other, and each wait is told where it belongs."""
import time
from dataclasses import fields, replace
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gramme import LLM
from gramme.cli import ledger
from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.kernels.load import backend
from gramme.llm import engine as engine_module
from gramme.llm.engine import Engine
from gramme.models.load import build, random_source
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import PARTS, Request, SamplingParams, Stamps, StructuredOutputsParams
from gramme.runtime.runner import Runner

MODEL = ModelConfig(family="llama", vocab_size=64, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ff_width=16,
                    norm_eps=1e-5, max_positions=256)
TICK = 1000  # ns of the clock between two looks at it


def in_order(stamps):
    return all(before <= after for before, after in pairwise(getattr(stamps, f.name) for f in fields(stamps)))


@given(st.lists(st.integers(1, 1 << 62), min_size=8, max_size=8))
def test_parts_add_up_to_the_nanosecond(times):
    stamps = Stamps(*times)
    assert list(stamps.parts()) == list(PARTS) and sum(stamps.parts().values()) == stamps.ttft_ns
    assert replace(stamps, flushed_ns=0).parts() == {} and replace(stamps, flushed_ns=0).ttft_ns == 0


@given(st.lists(st.integers(0, 10**10), min_size=7, max_size=7), st.none() | st.integers(1, 300))
def test_the_line_fits_and_its_bar_is_in_proportion(spans, columns):
    times = [1]
    for span in spans:
        times.append(times[-1] + span)
    line = ledger.line(Stamps(*times), 12, 300, columns)
    assert "\n" not in line and (columns is None or len(line) <= columns)
    if columns is None:
        assert all(name in line for name in PARTS) and "12 tokens cached, 300 computed" in line
    elif "|" in line:
        total, cells = sum(spans), line[line.index("|") + 1 : line.rindex("|")].split("|")
        width, shown = sum(map(len, cells)), [span for span in spans if span]
        assert len(cells) == len(shown)
        assert all(abs(len(cell) - width * span / total) <= 1 for cell, span in zip(cells, shown))


class Grammar:
    """One that is ready when the test says so."""

    def __init__(self):
        self.ready, self.meter = False, SimpleNamespace(masks=0, mask_s=0.0, compile_s=0.0)

    def compile(self, asked):
        return self

    def wait(self, timeout_s):
        pass

    def matcher(self):
        return None


@pytest.fixture
def engine(monkeypatch):
    """With one row, a grammar and a clock that ticks whenever somebody looks."""
    kernels = backend("reference")
    decided = plan(MODEL, EngineConfig(backend="reference", max_num_seqs=1, page_size=4, kv_tokens=256),
                   Hardware(cores=1, free_bytes=1 << 32))
    decoder = build(MODEL, random_source(MODEL, 1), kernels, "float32", 256)
    ticks = count(TICK, TICK)
    look = lambda: next(ticks)
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic_ns=look, process_time=time.process_time))
    return Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, decoder, kernels), Grammar())


def ask(key, tokens, form=None):
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True,
                            structured_outputs=form and StructuredOutputsParams(json_object=True))
    return Request(id=key, prompt_token_ids=[1, 2, 3], params=params)


@pytest.mark.parametrize("busy, ready", [(0, 0), (0, 3), (4, 0), (4, 2), (4, 9)])
def test_a_grammar_costs_what_is_waited_for_it_beyond_the_queue(engine, busy, ready):
    """`busy`: steps for which another request has the row; `ready`: after so many steps the grammar is there."""
    if busy:
        engine.add(ask("other", busy))
    engine.add(ask("held", 1, form=True))
    began, stamps = [], None
    while stamps is None:
        engine._grammars.ready = len(began) >= ready
        began.append(engine_module.time.monotonic_ns())
        stamps = next((u.stamps for u in engine.step() if u.id == "held" and u.stamps), None)
    step = lambda ns: sum(b < ns for b in began) - 1
    assert step(stamps.due_ns) == busy, "its turn"
    assert step(stamps.scheduled_ns) == max(busy, ready) == step(stamps.sampled_ns)
    assert (stamps.due_ns == stamps.scheduled_ns) == (ready <= busy), "what was compiled in the queue costs nothing"


def test_stamps_are_in_order_in_every_kind_of_request():
    llm = LLM("dummy:tiny", backend="reference", max_model_len=256, kv_tokens=1024)
    try:
        text = "a prompt that is longer than some pages of sixteen tokens, so that it is found again " * 2
        messages = {"messages": [{"role": "user", "content": text}]}
        greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        outs = [llm.generate(p, greedy)[0] for p in (text, text, {"prompt_token_ids": [5, 6, 7]}, messages)]
        outs += llm.generate([text[5:], text[9:]], replace(greedy, n=3, seed=1, temperature=1))
        outs += [out for _, _, out in llm.stream(messages, greedy)][-1:]
        for out in outs:
            stamps = out.metrics.stamps
            assert in_order(stamps) and stamps.arrived_ns and sum(stamps.parts().values()) == stamps.ttft_ns > 0
            assert out.metrics.newest_ns >= stamps.sampled_ns
        assert outs[0].metrics.cached_tokens == 0 < outs[1].metrics.cached_tokens
        assert outs[4].metrics.cached_tokens == 0, "of the sample that computed the prompt"
        assert outs[3].metrics.stamps.parts()["template"] > 10 * outs[2].metrics.stamps.parts()["template"]
    finally:
        llm.close()
