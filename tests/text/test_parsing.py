"""However an answer is cut, its pieces add up to the same; what is no call is content; no text is slow."""
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gramme.text.calls import HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED, tool_form
from gramme.text.parsing import AnswerParser, thinking

FORMS = {"hermes": HERMES, "mistral": MISTRAL, "named": MISTRAL_NAMED, "llama3": LLAMA3}
THINK = ("<think>", "</think>")
NAMES = ("f", "get_weather")


def read(text, form=None, marks=None, cuts=(), **more):
    """(content, reasoning, [(name, arguments)]) of a text that comes in pieces."""
    parser = AnswerParser(form, marks, names=NAMES, **more)
    content, reasoning, calls = [], [], {}
    ends = sorted({min(c, len(text)) for c in cuts} | {len(text)})
    pieces = [parser.feed(text[a:b]) for a, b in zip([0, *ends], ends)] + [parser.finish()]
    for piece in pieces:
        content.append(piece.content)
        reasoning.append(piece.reasoning)
        for call in piece.calls:
            assert (call.index in calls) == (call.name is None), "a name comes once, first"
            name, arguments = calls.get(call.index, (call.name, ""))
            calls[call.index] = (name, arguments + call.arguments)
    assert sorted(calls) == list(range(len(calls)))
    return "".join(content), "".join(reasoning), [calls[i] for i in sorted(calls)]


ONE = ("f", '{"a": 1}')
TWO = ("get_weather", '{"city": "Paris é }] </tool_call>", "n": [1, {"x": null}]}')
GOOD = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [ONE]),
    ("hermes", 'I look.\n\n<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>\n<tool_call>\n{"arguments": '
               + TWO[1] + ', "name": "get_weather"}\n</tool_call>\n', "I look.", [ONE, TWO]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}} and then', "and then", [ONE]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ONE]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}, {"name": "get_weather", '
                '"arguments": ' + TWO[1] + "}]", "", [ONE, TWO]),
    ("mistral", 'Yes. [TOOL_CALLS][{"name":"f","arguments":{"a":1}}] done', "Yes.done", [ONE]),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather{"city": "x"}', "",
     [ONE, ("get_weather", '{"city": "x"}')]),
    ("named", '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}', "", [ONE]),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}', "", [ONE]),
    ("llama3", ' <|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "get_weather", "parameters": '
               + TWO[1] + "}", "", [ONE, TWO]),
]
BAD = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call> then'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}'),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'), ("hermes", "<tool_call> f(1) </tool_call>"),
    ("hermes", "<tool_call>" + '{"a":' * 200 + "1" + "}" * 200), ("hermes", "<tool_call"), ("hermes", "<tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}"), ("hermes", "a < b <tool"),
    ("mistral", "[TOOL_CALLS] none needed"), ("mistral", '[TOOL_CALLS][{"name": 5}]'),
    ("mistral", '[TOOL_CALLS]f[X]{"a": 1}'),
    ("llama3", '{"answer": 42}'), ("llama3", '{"name": "f", "parameters": {"a": 1}'), ("llama3", 'x {"name": "f"}'),
    ("llama3", '{"name": "f", "parameters": {"a": tru}}'),
]


@pytest.mark.parametrize("form, text, content, calls", GOOD)
def test_calls_of_each_form(form, text, content, calls):
    got, _, made = read(text, FORMS[form])
    assert got == content and made == [(n, json.dumps(json.loads(a), ensure_ascii=False)) for n, a in calls]


@pytest.mark.parametrize("form, text", BAD)
def test_what_is_no_call_is_content(form, text):
    assert read(text, FORMS[form]) == (text, "", [])


def test_a_call_after_what_is_no_call():
    broken = '<tool_call>{"name": "f", "arguments": {]}</tool_call> sorry '
    assert read(broken + GOOD[0][1], HERMES) == (broken.rstrip(), "", [ONE])
    assert read("<tool_call> oh " + GOOD[0][1], HERMES) == ("<tool_call> oh", "", [ONE])


def test_half_a_surrogate_pair_in_arguments_stays_escaped():
    [(_, arguments)] = read('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}', HERMES)[2]
    assert arguments.encode() and json.loads(arguments) == {"a": "\ud800"}


@pytest.mark.parametrize("text, opened, want", [
    ("<think>\nhm\n</think>\n\nYes.", False, ("Yes.", "hm", [])), (" \n<think>a<b</think>", False, ("", "a<b", [])),
    ("hm, yes\n</think>\nYes. </think>", True, ("Yes. </think>", "hm, yes", [])),
    ("Yes <think>", False, ("Yes <think>", "", [])),
    ("<think>cut here </thi", False, ("", "cut here </thi", [])), ("cut", True, ("", "cut", [])),
    ("<thi", False, ("<thi", "", [])),
    ("  plain ", False, ("  plain ", "", [])),
    (" " * 500 + "<think>x</think>", False, (" " * 500 + "<think>x</think>", "", [])),
    ("<think></think>" + GOOD[0][1], False, ("", "", [ONE])), ("<think>" + GOOD[0][1], False, ("", GOOD[0][1], [])),
])
def test_reasoning_stands_apart(text, opened, want):
    assert read(text, HERMES, THINK, opened=opened) == want


def texts():
    """Texts made of everything that matters to a reader, in any order."""
    parts = [form.mark for form in FORMS.values()] + [
        *THINK, *(good[1] for good in GOOD), "{", "}", "[", "]", '"', "\\", '\\"', "</tool_call>", "[ARGS]", " ", "\n",
        ", ", "; ", "f", "é", "1", '{"name": "f", "arguments": ', '{"name": "f", "parameters": ', "{}", '"a": ',
        "x" * 250]
    return st.lists(st.sampled_from(parts), max_size=12).map("".join)


@settings(deadline=None, max_examples=400)
@given(text=texts(), cuts=st.lists(st.integers(0, 600), max_size=8), form=st.sampled_from([None, *FORMS]),
       certain=st.booleans(), opened=st.booleans(), thinks=st.booleans())
@example('<tool_call>{"name": "f", "arguments": {}}</tool_call>', list(range(60)), "hermes", False, False, True)
@example('<tool_call>\n{"name": "f", "arguments": {"a": "}"}}\n</tool_call>', list(range(60)), "hermes", True, False,
         True)
@example('{"name": "f", "parameters": {"a": "}"}}; {"name": "f", "parameters": {}}', list(range(80)), "llama3",
         True, False, False)
def test_in_pieces_as_whole(text, cuts, form, certain, opened, thinks):
    more = dict(form=FORMS.get(form), marks=THINK if thinks else None, certain=certain, opened=opened)
    assert read(text, cuts=cuts, **more) == read(text, **more) == read(text, cuts=range(len(text)), **more)


@settings(deadline=None, max_examples=200)
@given(text=texts(), form=st.sampled_from(list(FORMS)))
def test_nothing_but_blanks_and_calls_is_lost(text, form):
    content, _, calls = read(text, FORMS[form])
    if not calls:
        assert content.split() == text.split() or content.rstrip() == text.rstrip()


def written(form, calls):
    """What a grammar of this form makes the model write."""
    one = lambda name, arguments: name + form.named + arguments if form.named else \
        f'{{"name": "{name}", "{form.key}": {arguments}}}'
    return form.first + form.between.join(one(*call) for call in calls) + form.last


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("calls", [[ONE], [TWO], [ONE, TWO, ONE]], ids=len)
def test_certain_calls_are_given_as_they_come(form, calls):
    text = written(form, calls)
    assert read(text, form, certain=True) == read(text, form, certain=True, cuts=range(999)) == ("", "", calls)
    assert [(n, json.loads(a)) for n, a in read(text, form)[2]] == [(n, json.loads(a)) for n, a in calls]
    parser = AnswerParser(form, None, certain=True)
    early = [parser.feed(c) for c in text[: text.index(calls[0][1]) + 3]]
    assert "".join(c.arguments for piece in early for c in piece.calls) == calls[0][1][:3]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_more_calls_than_wanted(form):
    for certain in (False, True):
        assert read(written(form, [ONE, TWO]), form, certain=certain, most=1) == ("", "", [ONE])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("unit", [
    "{", '{"', "[", '\\"', " ", "<tool_call>", "<tool_call>{", "<tool_cal", "[TOOL_CALLS][", "]",
    '<tool_call>{"name": "', "<think>", "</think", ";{}", "[TOOL_CALLS]f{", "<|python_tag|>{}",
    '[TOOL_CALLS][{"name": "f", "arguments": {}}, '])
def test_no_text_is_slow(form, unit):
    text = unit * (100_000 // len(unit))
    for size in (len(text), 3):
        parser = AnswerParser(form, THINK, opened=True)
        began = time.perf_counter()
        for at in range(0, len(text), size):
            parser.feed(text[at : at + size])
        parser.finish()
        assert time.perf_counter() - began < 5, "a hang limit: 0.02 to 0.2 s are usual, by squares it would be minutes"


def test_forms_are_known_by_their_templates():
    assert tool_form("{{ bos }}[AVAILABLE_TOOLS]{{ tools }} [TOOL_CALLS]") is MISTRAL
    assert tool_form("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}") is MISTRAL_NAMED
    assert tool_form("{% if tools %}<tools></tools> <tool_call>") is HERMES
    assert tool_form('{%- if tools %} <|python_tag|> {"name": x, "parameters": y}') is LLAMA3
    assert tool_form("{{ messages[0].content }}") is None
    assert thinking("{% if '</think>' in content %}") == THINK
    assert thinking("[THINK] [/THINK]") == ("[THINK]", "[/THINK]")
    assert thinking("hello") is None
