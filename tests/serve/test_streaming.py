"""Streams carry any text whole, however its bytes are cut into tokens."""
import json
from itertools import pairwise

import pytest

from gramme.serve.streaming import event
from gramme.text.detokenizer import Detokenizer

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Bytes:
    """A tokenizer whose token i is pieces[i]."""

    special_ids, strips_first_space = frozenset(), False

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, token):
        return self.pieces[token]


def lines(stream):
    """What a client reads: the data of each event."""
    return [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(TEXTS, st.lists(st.integers(0, 240), max_size=20))
def test_any_text_cut_anywhere_arrives_whole(text, cuts):
    data = text.encode()
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    d = Detokenizer(Bytes(pieces))
    deltas = [d.feed([i]) for i in range(len(pieces))] + [d.finish()]
    stream = b"".join(event({"choices": [{"text": delta}]}) for delta in deltas)
    assert "".join(json.loads(x)["choices"][0]["text"] for x in lines(stream)) == text


@pytest.mark.parametrize("data", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe3\x81", b"\xf0\x9f\x92"])
def test_bytes_that_are_no_character_become_the_replacement(data):
    d = Detokenizer(Bytes([bytes([b]) for b in data]))
    text = "".join(d.feed([i]) for i in range(len(data))) + d.finish()
    assert text and set(text) == {"\ufffd"} and json.loads(lines(event({"text": text}))[0])["text"] == text


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.dictionaries(st.text(max_size=5).filter(lambda k: k != "type"), TEXTS, max_size=4))
def test_an_event_is_one_event_whatever_it_holds(body):
    made = event(body)
    assert made.endswith(b"\n\n") and made.count(b"\n\n") == 1 and json.loads(lines(made)[0]) == body
