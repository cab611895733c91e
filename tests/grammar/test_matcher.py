"""A matcher allows what its grammar allows: over every kind of tokenizer, forwards, back and after wrong guesses."""
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.grammar import compiler
from gramme.grammar.compiler import Grammars, Vocabulary
from gramme.request import RequestError, StructuredOutputsParams
from gramme.text.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).parent.parent / "text"))
from tiny import KINDS, save


@pytest.fixture(scope="module", params=KINDS)
def tokens(request, tmp_path_factory):
    t = load_tokenizer(save(request.param, tmp_path_factory.mktemp("t")))
    return Vocabulary([t.token_bytes(i) for i in range(t.vocab_size)] + [b""] * 5, sorted(t.special_ids), [t.eos_id],
                      t.encode_plain)


@pytest.fixture(scope="module")
def grammars(tokens):
    return Grammars(lambda: tokens)


def matcher(grammars, **asked):
    made = grammars.compile(StructuredOutputsParams(**asked))
    while not made.ready:
        made.wait(0.1)
    return made.matcher()


def allowed(m, ids):
    bits = m.mask(ids) or b""
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()


def walk(m, seed, most=200):
    """A random answer: its token ids, and whether it came to an end."""
    r, ids = np.random.default_rng(seed), []
    while len(ids) < most and not m.ended(ids):
        ids.append(int(r.choice(allowed(m, ids))))
    return ids, m.ended(ids)


def text(tokens, ids):
    return b"".join(tokens.tokens[i] for i in ids if i not in tokens.special_ids)


@pytest.mark.parametrize("asked, pattern", [
    (dict(regex="[a-c]{2,5}(é|ü)?!"), "[a-c]{2,5}(é|ü)?!"),
    (dict(choice=["hello the dog", "hell", " x"]), "hello the dog|hell| x"),
    (dict(grammar='start: "(" start ")" | "x"'), r"\(*x\)*"), (dict(regex="hello the quick"), "hello the quick"),
])
def test_every_walk_is_an_answer(grammars, tokens, asked, pattern):
    for seed in range(5):
        ids, ended = walk(matcher(grammars, **asked), seed)
        got = text(tokens, ids).decode("utf-8", "replace")
        assert not ended or re.fullmatch(pattern, got), got


def test_a_tokenizer_that_does_not_give_a_text_back(tokens):
    """As some do, which put a space before every text: what the grammar forces is then cut into the longest tokens."""
    for wrong in ([3, 3], [], list(range(9))):
        g = Grammars(lambda: replace(tokens, encode=lambda text: tokens.encode(text[:1]) + wrong))  # noqa: B023
        ids, ended = walk(matcher(g, regex="hello the quick"), 0)
        assert ended and text(tokens, ids) == b"hello the quick"


def test_control_tokens_and_ids_without_bytes_are_never_allowed_inside(grammars, tokens):
    m = matcher(grammars, regex="(.|\n)*")
    inside = allowed(m, [])
    assert set(inside) & set(tokens.special_ids) == set(tokens.eos_ids)
    assert all(tokens.tokens[i] for i in inside) and len(inside) > 256


def test_a_matcher_follows_in_any_order(grammars):
    """The mask after some tokens does not depend on what was asked before: drafts, wrong guesses, another answer."""
    asked = dict(json={"type": "object", "additionalProperties": {"type": "integer"}})
    wild = matcher(grammars, **asked)
    (a, _), (b, _) = walk(matcher(grammars, **asked), 1), walk(matcher(grammars, **asked), 2)
    r = np.random.default_rng(0)
    for _ in range(40):
        ids = (a, b, [3, 3], [*a[:4], 1])[r.integers(4)][: r.integers(30)]
        assert wild.mask(ids) == matcher(grammars, **asked).mask(ids)
        assert wild.ended(ids) == matcher(grammars, **asked).ended(ids)


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(0, 30), seed=st.integers(0, 9))
def test_rolled_back_as_never_gone(grammars, cut, seed):
    asked = dict(json={"type": "array", "items": {"enum": ["é", 5, None]}, "maxItems": 9})
    ids, _ = walk(matcher(grammars, **asked), seed)
    m = matcher(grammars, **asked)
    m.mask(ids)
    assert m.mask(ids[:cut]) == matcher(grammars, **asked).mask(ids[:cut])


def test_nothing_is_allowed_after_what_the_grammar_does_not_allow(grammars, tokens):
    m = matcher(grammars, regex="aaaa")
    wrong = next(i for i, t in enumerate(tokens.tokens) if t == b"b")
    assert m.mask([wrong]) is None and not m.ended([wrong])
    assert allowed(m, []), "and it goes on after that"


@pytest.mark.parametrize("asked", [
    dict(json={"$ref": "#"}), dict(json={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    dict(grammar="start: start"), dict(grammar="start: <|nobody|>"), dict(grammar="start: <[99999999]>"),
])
def test_a_grammar_without_an_answer_is_refused(grammars, asked):
    with pytest.raises(RequestError) as caught:
        matcher(grammars, **asked)
    assert caught.value.param == "structured_outputs"


def test_equal_grammars_are_compiled_once_and_old_ones_are_dropped(tokens):
    g = Grammars(lambda: tokens)
    first = g.compile(StructuredOutputsParams(regex="a"))
    assert all(g.compile(StructuredOutputsParams(regex="a")) is first for _ in range(64))
    for i in range(3 * compiler.MAX_KEPT):
        matcher(g, regex=f"a{{{i + 1}}}")
    assert len(g._kept) == compiler.MAX_KEPT and g.compile(StructuredOutputsParams(regex="a")) is not first


def spin(cpu_s):
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def test_a_grammar_that_takes_too_long_is_refused(tokens, monkeypatch):
    monkeypatch.setattr(compiler, "LIMIT_S", 0.05)
    monkeypatch.setattr(Grammars, "_build", lambda self, asked: spin(1))
    with pytest.raises(RequestError, match="longer than"):
        matcher(Grammars(lambda: tokens), regex="a")
