"""The client: events cut anywhere, arrivals that wait for nobody, latencies that hide nothing, failures by kind."""
import asyncio
import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sham import Sham, event, stream, token

from gramme.bench import client
from gramme.bench.client import Answer, Events, target
from gramme.bench.load import INTERRUPTED, Interrupt, drive, outcome
from gramme.bench.prompts import learn
from gramme.bench.serve import measure, prepare
from gramme.bench.workload import Ask, Workload
from gramme.config import ConfigError

LIMIT_S = 600.0  # of a test that hangs
TEXT = (b": hello\n\ndata: {\"a\": 1}\n\nevent: x\ndata: two\ndata:  lines\n\ndata\nid: 4\n\ndata:\n\n"
        b"data: caf\xc3\xa9\n\ndata: [DONE]\n\n")
DATA = [b'{"a": 1}', b"two\n lines", b"", b"caf\xc3\xa9", b"[DONE]"]


def fed(pieces):
    events = Events()
    return [data for piece in pieces for data in events.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_cut_at_any_byte_are_the_same(end):
    text = TEXT.replace(b"\n", end)
    assert fed([text]) == DATA == fed(text[i : i + 1] for i in range(len(text)))
    assert all(fed([text[:i], text[i:]]) == DATA for i in range(len(text)))


REPLY = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
BODY = (event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}) + b": ping\n\n"
        + event({"choices": [{"delta": {"content": "a"}}]}) + event({"choices": [{"delta": {"reasoning": "b"}}]})
        + event({"choices": [{"delta": {}, "finish_reason": "length"}]})
        + event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}) + b"data: [DONE]\n\n")
CHUNKED = REPLY + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (BODY[:7], BODY[7:100], BODY[100:])) + b"0\r\n\r\n"


class Writes:
    def write(self, data):
        self.data = data


def exchanged(pieces, lost=True):
    """The answer that these bytes make, however they are cut."""
    async def run():
        answer, done = Answer(), asyncio.get_running_loop().create_future()
        x = client._Exchange(b"request", answer, done)
        x.connection_made(Writes())
        for piece in pieces:
            if piece:
                x.data_received(piece)
        if lost:
            x.connection_lost(None)
        assert done.done()
        return answer

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CHUNKED)), max_size=12))
def test_an_answer_cut_anywhere_is_the_same_answer(cuts):
    places = [0, *sorted(cuts), len(CHUNKED)]
    a = exchanged([CHUNKED[i:j] for i, j in pairwise(places)], lost=False)
    assert (a.status, a.finished, a.failure, len(a.times_s)) == (200, True, None, 2)  # the role is no token
    assert (a.usage.prompt_tokens, a.usage.completion_tokens, a.counted_tokens) == (5, 2, 2)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(CHUNKED)), junk=st.binary(min_size=1, max_size=30), whole=st.booleans())
def test_an_answer_broken_anywhere_is_a_failure_or_an_answer_and_never_an_exception(at, junk, whole):
    a = exchanged([CHUNKED[:at], junk, CHUNKED[at:] if whole else b""])
    assert a.failure or a.finished or a.body
    assert "\n" not in a.detail and len(a.detail) <= 200


def test_an_answer_cut_short_is_a_failure_unless_its_end_was_said():
    said = CHUNKED.index(b'"finish_reason"') + 60
    assert exchanged([CHUNKED[:said]]).failure is None
    assert exchanged([CHUNKED[: CHUNKED.index(b'"finish_reason"')]]).failure == "closed early"
    assert exchanged([b""]).failure == "closed early"


def driven(sham, asks, limit_s=LIMIT_S, request=None, interrupt=None):
    with sham.serving() as url:
        t = target(url)
        body = lambda i, ask: t.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": ask.output_tokens,
                                                                   "stream": True, "n": i})
        return asyncio.run(drive(t, asks, request(body) if request else body, limit_s, interrupt or Interrupt()))


def test_no_arrival_waits_for_an_answer_and_a_stall_is_in_every_latency():
    """The server answers nobody before all have come: whoever waited for an answer would wait for ever."""
    asks, come = [Ask(0.02 * i, 1, 2) for i in range(20)], None

    async def hold(sham, n, body, write):
        nonlocal come
        come = come or asyncio.Event()
        if n == len(asks) - 1:
            come.set()
        await come.wait()
        await stream(sham, n, body, write)

    run = driven(Sham(hold), asks)
    assert [o.failure for o in run.outcomes] == [None] * 20
    for o in run.outcomes:
        assert o.e2el_s >= o.ttft_s >= asks[-1].at_s - o.ask.at_s


def test_a_client_that_is_late_says_so_and_its_latencies_begin_when_they_were_due():
    asks = [Ask(0.001 * i, 1, 1) for i in range(6)]

    def slow(body):
        def made(i, ask):
            time.sleep(0.03)
            return body(i, ask)
        return made

    run = driven(Sham(), asks, request=slow)
    for i, o in enumerate(run.outcomes[4:], 4):
        assert o.ttft_s > o.lag_s > 0.03 * (i + 1) - 0.1 - o.ask.at_s - 1e-3  # the lead of 0.1 s is used up first


def test_gaps_and_ends_are_those_of_the_chunks(monkeypatch):
    """By a clock of the test: chunks at 1, 2 and 4, the answer's end at 7, and [DONE], which is no token, at 20."""
    end = event({"choices": [{"text": "", "finish_reason": "length"}]})
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 4}})
    times = iter([0.5, 1.0, 2.0, 4.0, 7.0, 20.0])
    monkeypatch.setattr(client.time, "perf_counter", lambda: next(times))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    a = exchanged([head, token(), token(), token(), end, usage + b"data: [DONE]\n\n"])
    o = outcome(Ask(0.0, 1, 4), a, due_s=0.25, lag_s=0.125)
    assert (o.ttft_s, o.e2el_s, o.gaps_s, o.tpot_s) == (0.75, 6.75, (1.0, 2.0), 2.0)
    assert (o.lag_s, o.output_tokens, o.has_usage, o.failure) == (0.125, 4, True, None)


def failing(kind):
    async def answer(sham, n, body, write):
        await write({"error event": event({"error": {"message": "no\nmore"}}) + b"data: [DONE]\n\n",
                     "malformed event": b"data: {\n\n", "closed early": token(), "malformed types": b"data: [1]\n\n",
                     "no content": event({"choices": [{"text": "", "finish_reason": "stop"}]})}[kind])
    return answer


@pytest.mark.parametrize("kind, name", [
    (kind, kind) for kind in ("error event", "malformed event", "closed early", "no content")
] + [("malformed types", "malformed event")])
def test_every_failure_is_counted_by_its_kind(kind, name):
    async def other(sham, n, body, write):
        await (failing(kind) if n % 2 else stream)(sham, n, body, write)

    run = driven(Sham(other), [Ask(0.01 * i, 1, 2) for i in range(6)])
    assert sorted(o.failure or "" for o in run.outcomes) == [""] * 3 + [name] * 3


def test_statuses_timeouts_and_servers_that_are_not_there():
    assert driven(Sham(status=429), [Ask(0.0, 1, 1)]).outcomes[0].failure == "HTTP 429"
    hang = lambda sham, n, body, write: asyncio.sleep(LIMIT_S)
    assert driven(Sham(hang), [Ask(0.0, 1, 1)], limit_s=0.2).outcomes[0].failure == "timeout"
    nobody = asyncio.run(client.send(target("http://127.0.0.1:1"), b"x", LIMIT_S))
    assert nobody.failure == "cannot connect"


def test_an_interrupt_gives_up_what_is_open_and_keeps_what_is_done():
    """The last request is due in a day."""
    async def answer(sham, n, body, write):
        await (stream(sham, n, body, write) if body["i"] < 2 else asyncio.sleep(LIMIT_S))

    interrupt = Interrupt()
    tell = lambda tally: interrupt.now() if (tally.done, tally.sent) == (2, 4) else None
    with Sham(answer).serving() as url:
        t = target(url)
        asked = {"prompt": "a", "max_tokens": 1, "stream": True}
        body = lambda i, ask: t.request("POST", "/v1/completions", asked | {"i": i})
        made = asyncio.run(drive(t, [*(Ask(0.0, 1, 1) for _ in range(4)), Ask(86400.0, 1, 1)], body, LIMIT_S, interrupt,
                                 tell))
    assert [o.failure for o in made.outcomes] == [None, None, INTERRUPTED, INTERRUPTED] and made.interrupted


@pytest.mark.parametrize("base, endpoint", [(0, "completions"), (1, "completions"), (23, "chat")])
def test_prompts_have_the_tokens_that_were_asked_for(base, endpoint):
    """On a tokenizer that cuts some words in two, and the first word otherwise than the same behind a space."""
    cost = lambda i, word: 1 + (len(word) > 4) + 2 * (i == 0 and word != "the")
    words = lambda text: sum(cost(i, word) for i, word in enumerate(text.split()))
    sham = Sham(base=base, words=words)
    load = Workload(asks=tuple(Ask(0.0, n, 3) for n in (1, 2, 24, 25, 100, 999)), window_s=0.0, source="x")
    with sham.serving() as url:
        subject = prepare(target(url + "/v1/", "key"), None, endpoint, {"ignore_eos": None, "top_k": 4}, LIMIT_S)
        made = measure(subject, load, {}, LIMIT_S, 0, lambda tally: None)
    asked = [a.prompt_tokens for a in load.asks]
    assert sorted(sham.usage(b, 0)["usage"]["prompt_tokens"] for b in sham.bodies) == [max(n, base + 1) for n in asked]
    assert made["prompt_tokens_off"] == sum(n < base + 1 for n in asked) and made["completed"] == 6
    assert all(b["top_k"] == 4 and "ignore_eos" not in b and b["model"] == "sham" for b in sham.bodies)
    assert all("Authorization: Bearer key\r\n" in head for head in sham.heads)
    texts = [json.dumps(b.get("prompt") or b["messages"]) for b in sham.bodies]
    assert len(set(texts)) == 1 + sum(n > base + 1 for n in asked)  # those of one word are equal


@pytest.mark.parametrize("words, message", [
    (lambda text: len(text), "0 common English words"), (lambda text: len(set(text.split())), "should have"),
    (lambda text: 7, "0 common")])
def test_a_tokenizer_that_cannot_be_met_is_refused(words, message):
    async def count(text):
        return words(text)

    with pytest.raises(ConfigError, match=message):
        asyncio.run(learn(count))


@pytest.mark.parametrize("url", ["", "x", "ftp://a", "http://", "http://a:b", "http://a b", "http://u:p@a", "http://a?x=1",
                                 "http://a:99999", "http://[", "http://a/\r\nX: y"])
def test_a_wrong_url_is_refused(url):
    with pytest.raises(ConfigError, match="--url"):
        target(url)
