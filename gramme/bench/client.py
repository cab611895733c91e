"""One request to an OpenAI-compatible server and what came back when. Knows no workload and prints nothing.

Each request has a connection of its own, as a user who comes has: its making is part of the latency. The times are read
where the bytes arrive, before anything is parsed.
"""
import asyncio
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from gramme.config import ConfigError

MAX_BODY_BYTES = 1 << 24  # of an event, or of an answer that is no stream


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    def has_content(self) -> bool:
        """A chunk that only says a role is no token."""
        d = self.delta
        return bool(self.text or self.token_ids or (d and (d.content or d.reasoning_content or d.reasoning
                                                           or d.tool_calls)))


class Event(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


EVENT = msgspec.json.Decoder(Event)


class Events:
    """Server-sent events from bytes that are cut anywhere: the data of each (WHATWG HTML, section 9.2.6)."""

    def __init__(self) -> None:
        self._rest, self._data = b"", list[bytes]()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        lines = (self._rest + piece).splitlines(keepends=True)
        # a line that ends with \r may go on with \n
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        if len(self._rest) > MAX_BODY_BYTES:
            raise ValueError("a line without end")
        for line in lines:
            line = line.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []


@dataclass(slots=True)
class Answer:
    """Filled in as it comes. Times are of time.perf_counter."""

    status: int = 0
    body: bytes = b""  # of what is no stream
    times_s: list[float] = field(default_factory=list)  # of chunks with content
    ended_s: float = 0.0  # of the last chunk that belongs to the answer
    counted_tokens: int = 0  # ids where chunks bring them, else chunks
    usage: Usage | None = None
    finished: bool = False
    failure: str | None = None  # its kind; the first one stays
    detail: str = ""

    def fail(self, kind: str, detail: object = "") -> None:
        if self.failure is None:
            self.failure, self.detail = kind, " ".join(str(detail).split())[:200]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str = ""  # before /v1
    tls: ssl.SSLContext | None = None
    api_key: str | None = None
    address: str = ""  # of the host, once looked up

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        data = b"" if body is None else msgspec.json.encode(body)
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = (f"{method} {self.path}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\n{key}Connection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
        return head.encode() + data


def target(url: str, api_key: str | None = None) -> Target:
    """From http://host:port, with or without /v1. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ConfigError(f"--url {url!r:.80}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in url or not _plain(url):
        raise ConfigError(f"--url must be such as http://127.0.0.1:8000, not {url!r:.80}")
    if not _plain(api_key or ""):
        raise ConfigError("a key must be of printable characters, without spaces")
    return Target(parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"),
                  ssl.create_default_context() if parts.scheme == "https" else None, api_key)


def _plain(text: str) -> bool:
    return all("!" <= c <= "~" for c in text)


async def located(t: Target) -> Target:
    """With its address looked up, once: no request waits for a name server."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(t.host, t.port, type=1)
    except OSError as error:
        raise ConfigError(f"{t.host}: {error.strerror or error}") from None
    return Target(t.host, t.port, t.path, t.tls, t.api_key, str(found[0][4][0]))


async def send(t: Target, request: bytes, limit_s: float) -> Answer:
    """Never raises for what a server or a network does: that is the answer's `failure`."""
    loop, answer = asyncio.get_running_loop(), Answer()
    done: asyncio.Future[None] = loop.create_future()
    try:
        async with asyncio.timeout(limit_s):
            transport, _ = await loop.create_connection(lambda: _Exchange(request, answer, done), t.address or t.host,
                                                        t.port, ssl=t.tls, server_hostname=t.host if t.tls else None)
            try:
                await done
            finally:
                transport.abort()
    except TimeoutError:
        answer.fail("timeout", f"after {limit_s:g} s")
    except OSError as error:
        answer.fail("cannot connect", error.strerror or error)
    return answer


class _Exchange(asyncio.Protocol):
    """Writes the request, reads the answer; httptools calls the methods that begin with on_."""

    def __init__(self, request: bytes, answer: Answer, done: "asyncio.Future[None]"):
        self._request, self._answer, self._done = request, answer, done
        self._parser, self._events = httptools.HttpResponseParser(self), Events()
        self._now_s, self._streams, self._complete = 0.0, False, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._answer.fail("malformed answer", getattr(error, "__context__", None) or error)
        if self._complete or self._answer.failure:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._answer.fail("connection lost", error)
        self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._streams = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        self._streams &= self._answer.status == 200

    def on_body(self, piece: bytes) -> None:
        if not self._streams:
            self._answer.body += piece[: MAX_BODY_BYTES - len(self._answer.body)]
            return
        try:
            for data in self._events.feed(piece):
                self._take(data)
        except (msgspec.MsgspecError, ValueError) as error:
            self._answer.fail("malformed event", error)

    def on_message_complete(self) -> None:
        self._complete = True

    def _take(self, data: bytes) -> None:
        a = self._answer
        if data.strip() == b"[DONE]":
            a.finished = True
            return
        event = EVENT.decode(data)
        if event.error is not None:
            a.fail("error event", event.error.get("message") if isinstance(event.error, dict) else event.error)
        a.usage = event.usage or a.usage
        for choice in event.choices:
            a.ended_s = self._now_s
            a.finished |= choice.finish_reason is not None
            if choice.has_content():
                a.times_s.append(self._now_s)
                a.counted_tokens += len(choice.token_ids or ()) or 1

    def _end(self) -> None:
        if self._done.done():
            return
        a = self._answer
        if a.status == 0:
            a.fail("closed early", "before an answer")
        elif a.status != 200:
            a.fail(f"HTTP {a.status}", a.body[:200].decode("utf-8", "replace"))
        elif self._streams and not a.finished:
            a.fail("closed early", f"after {len(a.times_s)} chunks")
        self._done.set_result(None)
