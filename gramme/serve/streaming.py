"""Answers over one connection: server-sent events while the client listens, and the end of work when it leaves."""
import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from gramme.serve.errors import FORESEEN, http_error
from gramme.serve.job import Job
from gramme.serve.replies import Reply


async def events(job: Job, reply: Reply) -> AsyncIterator[bytes]:
    """The whole stream. What fails after the headers were sent is an event of its own."""
    try:
        for body in reply.begin():
            yield event(body)
        async with aclosing(job.run()) as updates:
            async for which, update, text in updates:
                for body in reply.chunk(which, update, text):
                    yield event(body)
        for body in reply.end():
            yield event(body)
    except FORESEEN as error:
        yield event(http_error(error).body)
    yield b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


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
