"""An answer has the form that was asked for, however its request is sampled, shared, preempted, guessed or aborted."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.grammar.compiler import Grammars, Vocabulary
from gramme.grammar.source import check
from gramme.kernels.load import backend
from gramme.llm.engine import Engine
from gramme.models.load import build, random_source
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import Request, RequestError, SamplingParams, StructuredOutputsParams
from gramme.runtime.runner import Runner
from gramme.text.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).parent.parent / "text"))
from tiny import save

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}


class Made:
    """Engines over one tiny random model, and its tokenizer."""

    def __init__(self, directory):
        self.tokenizer = t = load_tokenizer(save("llama2", directory))
        self.model = ModelConfig(family="llama", vocab_size=544, width=32, layers=2, heads=2, kv_heads=1,
                                 head_dim=16, ff_width=48, norm_eps=1e-5, max_positions=512, eos_token_ids=(t.eos_id,))
        self.kernels = backend("reference")
        self.decoder = build(self.model, random_source(self.model, 5), self.kernels, "float32", 512)
        tokens = [t.token_bytes(i) for i in range(t.vocab_size)] + [b""] * (544 - t.vocab_size)
        self.grammars = Grammars(lambda: Vocabulary(tokens, sorted(t.special_ids), [t.eos_id], t.encode_plain))

    def engine(self, propose=None, **options):
        config = EngineConfig(backend="reference", page_size=4, **(dict(kv_tokens=4096) | options))
        decided = plan(self.model, config, Hardware(cores=1, free_bytes=1 << 32))
        runner = Runner(self.model, decided, self.decoder, self.kernels)
        engine = Engine(self.model, decided, GenerationDefaults(), runner, self.grammars)
        engine.scheduler.propose = propose
        return engine

    def text(self, ids):
        t = self.tokenizer
        return b"".join(t.token_bytes(i) for i in ids if i not in t.special_ids).decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("t"))


def ask(key="a", prompt=(40, 41, 42, 43, 44), max_tokens=150, form=None, **params):
    asked = StructuredOutputsParams(**(form or dict(json=PERSON)))
    return Request(id=key, prompt_token_ids=list(prompt), params=SamplingParams(
        max_tokens=max_tokens, structured_outputs=asked, **params))


def run(engine, requests, at_step=lambda step: None):
    """(id, index) -> (tokens, finish reason, error)"""
    out = {}
    for r in requests:
        engine.add(r)
    step = 0
    while engine.busy:
        at_step(step)
        for u in engine.step():
            tokens, _, _ = out.get((u.id, u.index), ([], None, None))
            out[u.id, u.index] = ([*tokens, *u.token_ids], u.finish_reason, (u.error, u.error_param))
        step += 1
    engine._pool.check_integrity()
    assert engine.stats().pages_used == 0
    return out


def schemas():
    least_most = lambda top: st.tuples(st.integers(0, top), st.integers(0, top)).map(sorted)
    texts = st.one_of(
        least_most(4).map(lambda r: {"type": "string", "minLength": r[0], "maxLength": r[1]}),
        st.sampled_from(["^[a-f]{1,3}$", "x.", "^(é|ab)*$"]).map(lambda p: {"type": "string", "pattern": p}),
        st.just({"type": "string"}), st.just({"type": "string", "format": "date"}))
    numbers = st.one_of(
        least_most(200).map(lambda r: {"type": "integer", "minimum": r[0] - 100, "maximum": r[1] - 100}),
        st.just({"type": "number", "exclusiveMinimum": 0}), st.just({"type": "integer"}))
    consts = st.lists(st.sampled_from([None, True, 0, -1.5, "a", "é\n\"", [1], {"k": []}]), min_size=1, unique_by=repr)
    leaves = st.one_of(texts, numbers, consts.map(lambda c: {"enum": c}), st.just({"type": ["null", "boolean"]}))

    def objects(child):
        properties = st.dictionaries(st.sampled_from(["a", "b b", "é", "$ref", ""]), child, max_size=3)
        return st.builds(lambda p, required, more: {
            "type": "object", "properties": p, "required": sorted(p)[: required], "additionalProperties": more},
            properties, st.integers(0, 3), st.one_of(st.just(False), leaves))

    def arrays(child):
        return st.builds(lambda items, r: {"type": "array", "items": items, "minItems": r[0], "maxItems": r[1]},
                         child, least_most(3))

    either = lambda child: st.lists(child, min_size=1, max_size=3).map(lambda c: {"anyOf": c})
    return st.recursive(leaves, lambda child: st.one_of(objects(child), arrays(child), either(child)), max_leaves=6)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_every_whole_answer_is_valid_under_its_schema(made, schema, seed):
    try:
        check(StructuredOutputsParams(json=schema))
    except RequestError:
        return  # refused with a reason: that is the other half of the law
    done = run(made.engine(), [ask(form=dict(json=schema), seed=seed, n=3, temperature=1, max_tokens=120)])
    for tokens, reason, error in done.values():
        assert reason in ("stop", "length"), error
        if reason == "stop":
            jsonschema.validate(json.loads(made.text(tokens)), schema, cls=jsonschema.Draft202012Validator,
                                format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("form, pattern", [
    (dict(json_object=True), r"\{(.|\n)*"), (dict(choice=["yes", "no"]), "yes|no"),
    (dict(regex="[ab]{2,9}c"), "[ab]{2,9}c"),
    (dict(grammar='start: "<" start ">" | "x"'), "<*x>*"),
])
def test_the_other_forms(made, form, pattern):
    for tokens, reason, _ in run(made.engine(), [ask(form=form, n=4, seed=1, max_tokens=60)]).values():
        matches = re.fullmatch if reason == "stop" else lambda pattern, text: re.match(pattern[:2], text)
        assert matches(pattern, made.text(tokens))


def greedy(made, request):
    """Step by step: the most probable token among those that the grammar allows, one prompt after another."""
    matcher = made.grammars.compile(request.params.structured_outputs).matcher()
    tokens, engine = [], made.engine()
    while not matcher.ended(tokens) and len(tokens) < request.params.max_tokens:
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.mask(tokens), np.uint8), bitorder="little"))
        one = SamplingParams(max_tokens=1, temperature=0, allowed_token_ids=allowed.tolist())
        prompt = [*request.prompt_token_ids, *tokens]
        tokens += run(engine, [Request(id="g", prompt_token_ids=prompt, params=one)])["g", 0][0]
    return tokens


def test_greedy_is_the_most_probable_allowed_token_at_each_step(made):
    for key in range(3):
        request = ask(prompt=[50 + key, 60, 61], temperature=0, max_tokens=40)
        assert run(made.engine(), [request])["a", 0][0] == greedy(made, request)


def batch(made):
    """Six answers with a form, and one without."""
    free = Request(id="free", prompt_token_ids=[5, 6], params=SamplingParams(max_tokens=60, seed=1, ignore_eos=True))
    return [free] + [ask(str(i), prompt=range(30 + i, 45 + i), seed=i, temperature=i % 2, n=1 + i % 2, max_tokens=80)
            for i in range(6)]


@pytest.fixture(scope="module")
def undisturbed(made):
    return {key: value for r in batch(made) for key, value in run(made.engine(), [r]).items()}


def test_in_a_batch_as_alone(made, undisturbed):
    assert run(made.engine(), batch(made)) == undisturbed


def test_run_ahead_as_not(made, undisturbed):
    assert run(made.engine(run_ahead=True), batch(made)) == undisturbed


def test_preempted_as_undisturbed(made, undisturbed):
    tight = made.engine(kv_tokens=240, max_model_len=128)
    assert run(tight, batch(made)) == undisturbed
    assert tight.stats().preemptions > 0


def guesses(made, answers):
    """Proposes what will come, sometimes wrongly, sometimes against the grammar, sometimes beyond the end."""
    def propose(seq):
        done = len(seq.tokens) - seq.prompt_len
        right = answers[seq.id, seq.index][0][done : done + 4]
        if seq.id == "free":
            return right
        wrong = (len(seq.tokens) * 7) % 5
        return [*right[:wrong], (len(seq.tokens) * 31) % made.model.vocab_size, *right[wrong:]][:5]
    return propose


def test_with_guesses_as_without(made, undisturbed):
    engine = made.engine(propose=guesses(made, undisturbed))
    plain = made.engine()
    assert run(engine, batch(made)) == run(plain, batch(made)) == undisturbed
    assert engine.stats().steps < 0.8 * plain.stats().steps, "some guesses must have been right"


def test_an_abort_leaves_the_others_alone(made, undisturbed):
    engine = made.engine()
    done = run(engine, batch(made), at_step=lambda step: engine.abort("3") if step == 9 else None)
    assert done["3", 0][1] == "abort" and done["3", 0][0] == undisturbed["3", 0][0][: len(done["3", 0][0])]
    assert all(done[key] == undisturbed[key] for key in done if key[0] != "3")


def test_an_abort_while_the_grammar_is_compiled(made):
    engine = made.engine()
    engine.add(ask("x", form=dict(regex="never seen{1,50}")))
    engine.abort("x")
    assert [u.finish_reason for u in engine.step()] == ["abort"] and not engine.busy


def test_others_go_on_while_a_grammar_is_compiled_and_a_bad_one_ends_its_own_request_only(made):
    class Slow:
        ready = False

        def wait(self, timeout_s):
            pass

    engine, slow = made.engine(), Slow()
    engine._grammars = type("", (), {"compile": lambda self, asked: slow, "meter": made.grammars.meter})()
    engine.add(ask("held"))
    engine.add(Request(id="free", prompt_token_ids=[1, 2], params=SamplingParams(max_tokens=5, ignore_eos=True)))
    updates = [u for _ in range(8) for u in engine.step()]
    assert {u.id for u in updates} == {"free"} and updates[-1].finish_reason == "length"

    def refuse():
        raise RequestError("no such rule", "structured_outputs")

    slow.ready, slow.matcher = True, refuse
    [update] = [u for _ in range(3) for u in engine.step()]
    assert (update.finish_reason, update.error, update.error_param) == ("error", "no such rule", "structured_outputs")
    assert not engine.busy


def test_the_end_of_the_form_is_the_end_of_the_answer(made):
    """Whatever else was asked: ignore_eos, min_tokens; and an answer that is whole at max_tokens was not cut."""
    form = dict(choice=["abcdefgh"])
    size = len(run(made.engine(), [ask(form=form)])["a", 0][0])
    for more in (dict(ignore_eos=True), dict(min_tokens=100), dict(max_tokens=size), dict(stop_token_ids=[3], n=2)):
        for tokens, reason, _ in run(made.engine(), [ask(form=form, **more)]).values():
            assert (made.text(tokens), reason) == ("abcdefgh", "stop")
    tokens, reason, _ = run(made.engine(), [ask(form=form, max_tokens=size - 1)])["a", 0]
    assert reason == "length" and "abcdefgh".startswith(made.text(tokens))


def test_limits_that_leave_nothing_end_the_request_and_say_so(made):
    done = run(made.engine(), [ask("a", allowed_token_ids=[made.tokenizer.eos_id]), ask("b", seed=1)])
    assert done["a", 0][1] == "error" and "grammar" in done["a", 0][2][0] and done["b", 0][1] == "stop"


def test_without_a_tokenizer_a_form_is_refused(made):
    engine = made.engine()
    engine._grammars = None
    with pytest.raises(RequestError, match="tokenizer"):
        engine.add(ask())
    assert not engine.busy


def test_what_grammars_cost_is_counted(made):
    engine = made.engine()
    before = engine.stats()
    tokens = run(engine, [replace(ask(), id="m")])["m", 0][0]
    after = engine.stats()
    assert after.grammar_masks - before.grammar_masks == len(tokens)
    assert after.grammar_mask_s > before.grammar_mask_s and after.grammar_compile_s > 0
