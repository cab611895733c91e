"""An OpenAI-compatible server that answers as a test wants, in the pieces that a test wants; no test in here."""
import asyncio
import json
import threading
from contextlib import contextmanager


class Sham:
    """Knows a tokenizer: one token a word, and `base` for every prompt. `answer(sham, n, body, write)` is a coroutine
    that writes what follows the headers of request n; `bodies` are what was asked."""

    def __init__(self, answer=None, base=1, status=200, words=None):
        self.base, self.status, self.bodies, self.arrived_s, self.heads = base, status, [], [], []
        self.answer = answer or stream
        self.words = words or (lambda text: len(text.split()))

    async def handle(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(next(x for x in head.splitlines() if x.lower().startswith("content-length")).split()[1])
            body = json.loads(await reader.readexactly(length) or b"{}")
            self.heads.append(head)
            await self.reply(body, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def reply(self, body, writer):
        if not body.get("stream"):
            return writer.write(whole(self.models() if "max_tokens" not in body else self.usage(body, 1)))
        self.bodies.append(body)
        if self.status != 200:
            return writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 4\r\n\r\nbusy" % self.status)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

        async def write(data):
            writer.write(data)
            await writer.drain()

        await self.answer(self, len(self.bodies) - 1, body, write)

    def models(self):
        return {"data": [{"id": "sham"}]}

    def usage(self, body, tokens):
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        return {"usage": {"prompt_tokens": self.base + self.words(text), "completion_tokens": tokens}}

    @contextmanager
    def serving(self):
        """The URL, while it runs in a thread with a loop of its own."""
        loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

        async def run():
            server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
            port.append(server.sockets[0].getsockname()[1])
            ready.set()
            self.stop = asyncio.Event()
            await self.stop.wait()
            server.close()

        thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
        thread.start()
        ready.wait()
        try:
            yield f"http://127.0.0.1:{port[0]}"
        finally:
            loop.call_soon_threadsafe(self.stop.set)
            thread.join()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()


def whole(value):
    data = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def token(text="x", reason=None):
    return event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})


async def stream(sham, n, body, write):
    """As many tokens as were asked, at once, then usage."""
    for i in range(body["max_tokens"]):
        await write(token("x", "length" if i == body["max_tokens"] - 1 else None))
    await write(event({"choices": [], **sham.usage(body, body["max_tokens"])}) + b"data: [DONE]\n\n")
