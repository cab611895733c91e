"""Nothing silently does nothing: switch a cause off, and its line of the report changes; so does its effect."""
from dataclasses import replace

import pytest
from engines import BACKENDS, BITWISE, MODEL, maker, prompts, requests, run
from test_receipts_add_up import guesses

from gramme.config import EngineConfig, Stored
from gramme.kernels.load import backend
from gramme.llm.report import LINES, Facts, Loaded, report, surprising, text
from gramme.plan.cost import layer_elements
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import EngineStats, Request, SamplingParams, Spent

COMPILED = pytest.mark.skipif("cpu" not in BITWISE, reason="the CPU kernels are not compiled")


def lines(engine, **options):
    return {line.name: line for line in report(Facts(EngineConfig(**options), engine.model, engine.plan,
                                                     engine.loaded, engine.stats()))}


def served(todo=None, name="exact", **options):
    """The report of an engine that has answered; by default prompts that share a beginning."""
    engine = maker(name)(**options)
    for request in requests(prompts(6, shared=24), max_tokens=20) if todo is None else todo:
        run(engine, [request])
    return lines(engine, **options)


def together(name="exact", **options):
    engine = maker(name)(**options)
    run(engine, requests(prompts(12, shared=24), max_tokens=20))
    return lines(engine, **options)


def drafted(right):
    engine = maker("exact")()
    answers = run(engine, todo := requests(prompts(3), max_tokens=12))
    engine = maker("exact")()
    engine.scheduler.propose = guesses(answers, right)
    run(engine, todo)
    return lines(engine)


class Always:
    """random.Random as far as `guesses` needs it: each guess right, or each wrong."""

    def __init__(self, right):
        self.random, self.randrange = lambda: 1.0 - right, lambda n: min(4, n - 1)


# name of a line: (what makes it act, how it then is), (its cause gone, how it then is)
CASES = {
    "prefix cache": [(lambda: served(), "engaged"), (lambda: served(prefix_caching=False), "off")],
    "prefix cache, nothing shared": [(lambda: served(), "engaged"),
                                     (lambda: served(requests(prompts(3, seed=5))), "no effect")],
    "prefix cache, unused": [(lambda: served(), "engaged"), (lambda: served([]), "waiting")],
    "chunked prefill": [(lambda: together(max_num_batched_tokens=40), "engaged"),
                        (lambda: served(max_num_batched_tokens=256), "waiting")],
    "preemption": [(lambda: together(kv_tokens=256), "engaged"), (lambda: together(), "waiting")],
    "run-ahead": [(lambda: served(run_ahead=True), "no effect"), (lambda: served(run_ahead=False), "off")],
    "run-ahead, penalties": [
        (lambda: served(run_ahead=True), "no effect"),
        (lambda: served(requests(prompts(2), repetition_penalty=1.2), run_ahead=True), "no effect")],
    "speculation": [(lambda: drafted(Always(True)), "engaged"), (lambda: served(), "off")],
    "speculation, always wrong": [(lambda: drafted(Always(True)), "engaged"),
                                  (lambda: drafted(Always(False)), "no effect")],
    "energy": [(lambda: served(power="40W"), "engaged"), (lambda: served(), "off")],
    "float16 sums": [(lambda: served(accumulate="float16"), "fell back"), (lambda: served(), "off")],
    "threads": [(lambda: served(threads=1), "fell back"), (lambda: served(), "off")],
    "kernels": [(lambda: lines(maker("exact")(), backend="reference"), "engaged"),
                (lambda: served([]), "fell back")],
    "KV form": [(lambda: served(kv_cache_dtype="int8"), "engaged"), (lambda: served(), "engaged")],
}
ON_THE_CPU = {
    "recorded steps": [(lambda: served(name="cpu"), "engaged"), (lambda: served(), "off")],
    "recorded steps, nothing ran": [(lambda: served(name="cpu"), "engaged"), (lambda: served([], "cpu"), "waiting")],
    "CPU level": [(lambda: served([], "cpu"), "engaged"), (lambda: served([]), "off")],
    "deterministic": [(lambda: served([], "cpu"), "engaged"), (lambda: served([]), "off")],
}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(n, marks=COMPILED) for n in ON_THE_CPU)])
def test_a_cause_that_is_gone_changes_its_line(name):
    (acts, how), (gone, then) = (CASES | ON_THE_CPU)[name]
    one, other = (made()[name.partition(",")[0]] for made in (acts, gone))
    assert (one.state, other.state) == (how, then), (one, other)
    assert one != other and all(e.why or e.effect for e in (one, other))
    assert other.state != "engaged" or one.effect != other.effect
    if other.state in ("no effect", "off", "fell back"):
        assert other.why, "why not is not said"


def facts(config=EngineConfig(), model=MODEL, loaded=Loaded(), **stats):
    decided = plan(model, config, Hardware(cores=2, free_bytes=1 << 33, backends=("cpu", "reference")))
    return Facts(config, model, decided, loaded, EngineStats(**stats))


def line(name, *args, **kw):
    return next(e for e in report(facts(*args, **kw)) if e.name == name)


INTEGERS = replace(MODEL, stored=Stored(layers=(layer_elements(MODEL), 9000)), notes=("read as Q4_0",))
OVERLAPS = {"loaded": Loaded(asynchronous=True), "config": EngineConfig(run_ahead=True), "steps": 9}


@pytest.mark.parametrize("name, before, after", [
    ("run-ahead", OVERLAPS | {"rows_ahead": 8}, OVERLAPS | {"spent": Spent(decode_tokens=8)}),
    ("run-ahead", OVERLAPS | {"rows_ahead": 8}, OVERLAPS),
    ("layout cache", {"loaded": Loaded(layout="mapped")}, {"loaded": Loaded(layout_why="--no-layout-cache")}),
    ("layout cache", {"loaded": Loaded(layout="mapped")}, {"loaded": Loaded(layout="written")}),
    ("grammars", {"grammar_masks": 3}, {}),
    ("grammars", {}, {"config": EngineConfig(skip_tokenizer_init=True)}),
    ("steps in halves", {"halved": 1}, {}),
    ("preemption", {"preemptions": 1}, {}),
    ("CPU level", {"loaded": Loaded(level="avx2 (forced by GRAMME_CPU_LEVEL; this processor runs avx2)")},
     {"loaded": Loaded(level="avx2 (the best that gives the known answers; this processor runs avx2)")}),
    ("weights", {"model": INTEGERS}, {}),
    ("weights", {"config": EngineConfig(dtype="int4")}, {}),
    ("deterministic", {"config": EngineConfig(backend="reference", deterministic=True)},
     {"config": EngineConfig(backend="reference")}),
])
def test_what_is_known_of_loading_and_of_counters_is_in_the_line(name, before, after):
    assert line(name, **before) != line(name, **after)


def test_integers_of_the_file_are_run_as_they_are_and_a_wish_for_others_says_so():
    assert line("weights", model=INTEGERS).state == "engaged"
    asked = line("weights", model=INTEGERS, config=EngineConfig(dtype="int8"))
    assert asked.state == "fell back" and "int8 is for the others" in asked.why


def test_every_line_stands_once_and_can_be_printed():
    made = report(facts())
    assert len({e.name for e in made}) == len(made) == len(LINES)
    assert all(e.name in printed and e.state in printed for e, printed in zip(made, text(made), strict=True))
    assert {e.name for e in made} >= {name.partition(",")[0] for name in CASES | ON_THE_CPU}


def test_a_start_says_only_what_does_not_act_though_it_might_be_expected_to():
    names = lambda *args, **kw: {e.name for e in surprising(report(facts(*args, **kw)))}
    usual = facts(loaded=Loaded(layout_why="the weights are small", records=True))
    assert surprising(report(usual)) == []
    assert names(EngineConfig(prefix_caching=False, layout_cache=False)) == {"prefix cache", "layout cache"}
    assert names(EngineConfig(backend="reference", threads=3, deterministic=True)) == {"threads", "deterministic"}
    assert names(model=INTEGERS, config=EngineConfig(dtype="int8")) == {"weights"}


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_say_what_they_record(name):
    kernels = backend("reference" if name == "exact" else name)
    assert kernels.records == (name in ("cpu", "cuda")) and bool(kernels.level) == (name == "cpu")


def test_scored_prompts_ask_no_cache():
    """Prompts whose logits are wanted are run whole: they are no queries in vain."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, logprobs=0)
    assert served([Request(id="a", prompt_token_ids=[5] * 40, params=params)] * 2)["prefix cache"].state == "waiting"
