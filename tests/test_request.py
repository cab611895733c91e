"""Every field that a caller may set has a bound, and the bound holds."""
from collections.abc import Sequence
from dataclasses import fields

import msgspec
import pytest

from gramme.request import Logprob, Request, RequestError, SamplingParams, Scores, Update

# The fields of a Request that no caller sets.
OURS = {"id", "prompt_token_ids", "params", "bad_word_ids", "stamps", "start_by_s", "deadline_s", "pooling"}


def beyond(bound):
    """Values just outside, of the wrong type, and too many."""
    if bound.most is not None:
        inside = "x" * int(max(bound.low, 1)) if bound.kind is str else bound.kind(bound.high)
        yield tuple([inside] * (bound.most + 1)) if bound.kind is not float else dict.fromkeys(range(bound.most + 1), 0)
        yield from ({5: x} if bound.kind is float else (x,) for x in singly(bound))
    else:
        yield from singly(bound)


def singly(bound):
    yield {"an": "object"}
    if bound.kind in (int, float):
        yield from (bound.low - 1, bound.high + 1, 10**400, True, "5", float("nan"), float("inf"))
    if bound.kind is str:
        yield "x" * int(bound.high + 1)
        yield 5
    if bound.kind is bool:
        yield 1
    if bound.above:
        yield bound.low


@pytest.mark.parametrize("field", fields(SamplingParams), ids=lambda f: f.name)
def test_a_parameter_has_a_bound_that_holds(field):
    assert "bound" in field.metadata, "give it one with _bounded"
    for bad in beyond(field.metadata["bound"]):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{field.name: bad})
        assert caught.value.param == field.name


@pytest.mark.parametrize("field", [f for f in fields(Request) if f.name not in OURS], ids=lambda f: f.name)
def test_a_requests_own_fields_have_bounds_that_hold(field):
    for bad in beyond(field.metadata["bound"]):
        with pytest.raises(RequestError):
            Request(id="r", prompt_token_ids=[1], params=SamplingParams(), **{field.name: bad})


def test_an_empty_choice_of_tokens_and_more_tokens_at_least_than_at_most_are_refused():
    for more in ({"allowed_token_ids": []}, {"min_tokens": 5, "max_tokens": 4}, {"logit_bias": {-1: 0}}):
        with pytest.raises(RequestError):
            SamplingParams(**more)


def test_scores_are_a_sequence_of_what_was_added_and_go_through_a_message():
    def made(start, count):
        scores = Scores()
        for i in range(start, start + count):
            scores.add(i, -float(i), 3 + i, [i, 50 + i] if i % 2 else [90, 50 + i], [-float(i), -0.5])
        return scores

    dict_of = lambda i: {i: Logprob(-float(i), 3 + i), 50 + i: Logprob(-0.5, 2)} | (
        {} if i % 2 else {90: Logprob(-float(i), 1)})
    whole = Scores()
    assert list(whole) == [None] and len(whole) == 1
    whole.put(0, made(1, 4))
    whole.put(2, made(3, 5))  # begun anew at a page's end
    want = [None, *map(dict_of, range(1, 8))]
    assert list(whole) == want and whole[-1] == want[-1] and whole[1:3] == want[1:3] and isinstance(whole, Sequence)
    with pytest.raises(IndexError):
        whole[8]
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Update(id="a", prompt_logprobs=whole)), type=Update)
    assert list(sent.prompt_logprobs) == want
