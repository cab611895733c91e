"""One connection: uvicorn's HTTP protocol with limits on what clients send and on how slow they are."""
import json
from asyncio import TimerHandle
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 << 10  # of all headers and the URL
MAX_CHUNKS = 1 << 16  # of one body: a million chunks of a byte cost seconds of parsing


@dataclass(frozen=True)
class Limits:
    connections: int
    header_s: float
    write_s: float


class TooMuch(Exception):
    """A limit was passed: the status to answer with."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The class that uvicorn makes one of for each connection."""
    return type("Connection", (Connection,), {"limits": limits})


class Connection(HttpToolsProtocol):
    limits: Limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._running: Any = None  # the cycle that is being answered; pipelined ones wait
        self._stalled: TimerHandle | None = None
        self._late: TimerHandle | None = None
        self._start_headers()
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "there are too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._late, self._stalled, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        for cycle in (self._running, *(c for c, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._begun = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrades are not supported")
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, TooMuch) else None
            self._refuse(cause.status if cause else 400, str(cause or "this is not HTTP"))
        else:
            self._count_unfinished(len(data))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._chunks, self._begun = 0, True
        if self._late is None:
            self._start_headers()
        self._header_bytes = self._unfinished_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            raise TooMuch(431, f"there are more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise TooMuch(413, f"the body has more than {MAX_CHUNKS} chunks")

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _start_headers(self) -> None:
        self._header_bytes = self._unfinished_bytes = 0
        self._late = self.loop.call_later(self.limits.header_s, self.transport.close)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise TooMuch(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")

    def _count_unfinished(self, size: int) -> None:
        """The parser keeps a header that has no end to itself, so what comes before its end is counted here."""
        if self._late is not None and not self._begun:
            self._unfinished_bytes += size
            if self._unfinished_bytes > MAX_HEADER_BYTES:
                self._refuse(431, "the headers are too large")

    def _refuse(self, status: int, message: str) -> None:
        """Answer outside of any route, and close."""
        kind = "unavailable_error" if status == 503 else "invalid_request_error"
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()
        if self._running is None or self._running.response_complete or not self._running.response_started:
            self.transport.write(STATUS_LINE[status] + b"content-type: application/json\r\nconnection: close\r\n"
                                 b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()
