"""The grammar of each form allows its calls, refuses all else, and what it writes the reader of that form reads."""
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from gramme.grammar.compiler import Grammars, Vocabulary
from gramme.grammar.tools import calls_grammar
from gramme.request import StructuredOutputsParams
from gramme.text.calls import HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED
from gramme.text.parsing import AnswerParser
from gramme.text.tokenizer import load_tokenizer

EMBEDDED = Path(__file__).parents[2] / "gramme" / "embedded"
FORMS = {"hermes": HERMES, "mistral": MISTRAL, "named": MISTRAL_NAMED, "llama3": LLAMA3}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"],
          "additionalProperties": False}
FUNCTIONS = [("f", SCHEMA), ("get_weather", {"type": "object", "properties": {}, "additionalProperties": False})]
ONE, TWO = ("f", '{"a": 1}'), ("get_weather", "{}")


@pytest.fixture(scope="module", params=[False, True], ids=["marks are text", "marks are tokens"])
def world(request):
    """A tokenizer, and which marks are control tokens of it (ids that are otherwise unused here)."""
    t = load_tokenizer(EMBEDDED)
    control = {"[TOOL_CALLS]": 2, "[ARGS]": 3, "<tool_call>": 200} if request.param else {}
    tokens = [t.token_bytes(i) for i in range(t.vocab_size)]
    special = sorted({*t.special_ids, *control.values()})
    return t, control, Grammars(lambda: Vocabulary(tokens, special, [t.eos_id], t.encode_plain))


def matcher(world, form, **more):
    _, control, grammars = world
    made = grammars.compile(StructuredOutputsParams(grammar=calls_grammar(FUNCTIONS, form, control, **more)))
    while not made.ready:
        made.wait(0.1)
    return made.matcher()


def ids(world, text):
    tokenizer, control, _ = world
    for mark, token in control.items():
        head, found, tail = text.partition(mark)
        if found:
            return [*ids(world, head), token, *ids(world, tail)]
    return tokenizer.encode_plain(text) if text else []


def allows(world, m, text):
    """Whether some answer begins with `text`."""
    return m.mask(ids(world, text)) is not None


def written(form, calls):
    one = lambda name, arguments: name + form.named + arguments if form.named else \
        f'{{"name": "{name}", "{form.key}": {arguments}}}'
    return form.first + form.between.join(one(*call) for call in calls) + form.last


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forced_calls(world, form):
    m, single = matcher(world, form), matcher(world, form, several=False)
    for calls in ([ONE], [TWO, ONE]):
        assert allows(world, m, written(form, calls))
    assert allows(world, single, written(form, [ONE])) and not allows(world, single, written(form, [ONE, TWO]))
    for call in (("g", "{}"), ("f", "{}"), ("f", '{"a": true}'), ("f", '{"a": 1, "b": 2}')):
        assert not allows(world, m, written(form, [call])), call
    assert not allows(world, m, "hello")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_that_may_come(world, form):
    m = matcher(world, form, free=True)
    for text in ("hello", "", "a < b", "see {this}", written(form, [ONE]), written(form, [ONE, TWO])):
        assert allows(world, m, text), text
    wrong = written(form, [("f", '{"a": true}')])
    assert not allows(world, m, wrong), wrong
    if not form.bare:
        assert allows(world, m, "I look.\n" + written(form, [ONE])) and not allows(world, m, "I look.\n" + wrong)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_the_grammar_writes_is_read_as_calls(world, form):
    tokenizer, control, _ = world
    shown = {token: mark for mark, token in control.items()}
    for seed in range(4):
        m, r, made = matcher(world, form), np.random.default_rng(seed), []
        while not m.ended(made) and len(made) < 300:
            bits = np.unpackbits(np.frombuffer(m.mask(made), np.uint8), bitorder="little")
            bits[tokenizer.eos_id] = 0
            made.append(int(r.choice(np.flatnonzero(bits))) if bits.any() else tokenizer.eos_id)
        text = b"".join(shown.get(t, "").encode() or tokenizer.token_bytes(t) for t in made if t != tokenizer.eos_id)
        for certain in (False, True):
            parser, calls = AnswerParser(form, None, certain=certain), {}
            for piece in (parser.feed(text.decode()), parser.finish()):
                for call in piece.calls:
                    calls.setdefault(call.index, [call.name, ""])[1] += call.arguments
                assert not piece.content.strip() or len(made) == 300
            whole = list(calls.values()) if len(made) < 300 else list(calls.values())[:-1]
            assert calls or len(made) == 300
            for name, arguments in whole:
                jsonschema.validate(json.loads(arguments), dict(FUNCTIONS)[name])
