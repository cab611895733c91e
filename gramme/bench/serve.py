"""`gramme bench serve`: one workload against one OpenAI-compatible server, and the record of what came of it."""
import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

from gramme.bench.client import Target, located, send
from gramme.bench.latency import Slo, each, summary
from gramme.bench.load import Interrupt, Tally, drive
from gramme.bench.prompts import Count, Words, learn
from gramme.bench.workload import Ask, Workload
from gramme.config import ConfigError

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server that is ready, and how it is asked."""

    target: Target
    model: str
    endpoint: str
    words: Words
    extra: Mapping[str, Any] = field(default_factory=dict)  # of every body; None takes a key away

    def body(self, prompt: str, output_tokens: int) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.endpoint == "chat" else {"prompt": prompt}
        body = {"model": self.model, **asked, "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}} | dict(self.extra)
        return {key: value for key, value in body.items() if value is not None}


def prepare(target: Target, model: str | None, endpoint: str, extra: Mapping[str, Any], limit_s: float,
            count: Callable[[str], int] | None = None) -> Subject:
    """Asks the server what it serves, when no model is named, and learns how to make prompts: by `count`, the tokens of
    a text, or by the server's own usage. Raises ConfigError with one line."""
    async def work() -> Subject:
        place = await located(target)
        asked = model or await _first_model(place, limit_s)
        subject = Subject(target=place, model=asked, endpoint=endpoint, words=Words(0, ()), extra=extra)
        words = await learn(_offline(count) if count else lambda text: _counted(subject, text, limit_s))
        return Subject(target=place, model=asked, endpoint=endpoint, words=words, extra=extra)

    made: Subject = _run(work())
    return made


def measure(subject: Subject, workload: Workload, slo: Slo, limit_s: float, seed: int,
            tell: Callable[[Tally], None]) -> dict[str, Any]:
    """One run's record. Ctrl-C ends it with what was measured so far and "interrupted": true."""
    def request(i: int, ask: Ask) -> bytes:
        body = subject.body(subject.words.prompt(ask.prompt_tokens, f"{seed} {i}"), ask.output_tokens)
        return subject.target.request("POST", PATHS[subject.endpoint], body)

    async def work() -> Any:
        interrupt, loop = Interrupt(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupt.now)
        try:
            return await drive(subject.target, workload.asks, request, limit_s, interrupt, tell)
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    run = _run(work())
    asked = {"endpoint": subject.endpoint, "seed": seed, "slo": {k: 1e3 * v for k, v in slo.items()}}
    details = {o.failure: o.detail for o in reversed(run.outcomes) if o.failure}
    return {"workload": workload.facts() | asked, "interrupted": run.interrupted,
            **summary(run, workload.window_s, slo), "failure_examples": details, "requests": each(run)}


def predictions(subject: Subject, limit_s: float) -> dict[str, Any]:
    """What gramme's own server says of its predictions, by what they are of."""
    found: dict[str, Any] = _run(_json(subject.target, "GET", "/v1/status", None, limit_s))["predictions"]
    return found


def _run(work: Any) -> Any:
    before = signal.getsignal(signal.SIGINT)  # the runner and the loop put others in its place
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    finally:
        signal.signal(signal.SIGINT, before)


def _offline(count: Callable[[str], int]) -> Count:
    async def counted(text: str) -> int:
        return count(text)

    return counted


async def _counted(subject: Subject, text: str, limit_s: float) -> int:
    """Tokens of a prompt by the server's usage, which all servers give with an answer that is no stream."""
    body = subject.body(text, 1)
    del body["stream"], body["stream_options"]
    reply = await _json(subject.target, "POST", PATHS[subject.endpoint], body, limit_s)
    usage = reply.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if not isinstance(tokens, int):
        raise ConfigError("the server does not say how many tokens a prompt has: give --tokenizer")
    return tokens


async def _first_model(target: Target, limit_s: float) -> str:
    reply = await _json(target, "GET", "/v1/models", None, limit_s)
    try:
        return str(reply["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError("the server does not name its models: give --model") from None


async def _json(target: Target, method: str, path: str, body: Any, limit_s: float) -> dict[str, Any]:
    where = f"{target.host}:{target.port}{target.path}{path}"
    answer = await send(target, target.request(method, path, body), limit_s)
    if answer.failure is not None:
        raise ConfigError(f"{where}: {answer.failure}: {answer.detail}")
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ConfigError(f"{where} did not answer with a JSON object") from None
