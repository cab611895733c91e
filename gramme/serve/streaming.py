"""Answers over one connection: server-sent events while the client listens, and the end of work when it leaves."""
import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from gramme.serve.admission import Place
from gramme.serve.errors import FORESEEN, HttpError, http_error
from gramme.serve.job import Job
from gramme.serve.openai import MAX_BODY_BYTES
from gramme.serve.replies import Reply

logger = logging.getLogger("uvicorn.error")


class HeldStream(StreamingResponse):
    """A stream that gives its place back when it is over, whether it ever began or not."""

    def __init__(self, place: Place, content: AsyncIterator[bytes], **more: Any):
        super().__init__(content, **more)
        self._place = place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def read_body(http: HttpRequest, limit_s: float) -> bytes:
    """A JSON body within its limits of size and time."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "the content type must be application/json")
    if http.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "a content encoding is not supported")
    data = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            async for piece in http.stream():
                data += piece
                if len(data) > MAX_BODY_BYTES:
                    raise HttpError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", code="content_too_large")
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {limit_s:g} s") from None
    return bytes(data)


async def events(job: Job, reply: Reply) -> AsyncIterator[bytes]:
    """The whole stream. What fails after the headers were sent is an event of its own."""
    try:
        for body in reply.begin():
            yield event(body)
        async with aclosing(job.run()) as updates:
            async for which, update, text in updates:
                for body in reply.chunk(which, update, text):
                    yield event(body)
                    job.assemblies[which].handed_over()
        for body in reply.end():
            yield event(body)
    except FORESEEN as error:
        yield event(http_error(error).body)
    except Exception:
        logger.exception("a stream failed")
        yield event(HttpError(500, "internal error", "internal_error").body)
    yield b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """A body that has a type, as those of /v1/responses have, is an event of that name."""
    name = f"event: {body['type']}\n".encode() if "type" in body else b""
    return name + b"data: " + msgspec.json.encode(body) + b"\n\n"


async def until_gone(http: HttpRequest, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`; it is cancelled when the client goes first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(http.receive())  # the body has been read: what comes now is the disconnect
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
