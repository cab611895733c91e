"""Owns the engine process and shares it among asyncio tasks. Knows no HTTP and no text."""
import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from hashlib import sha256

from gramme.config import EngineConfig
from gramme.request import EngineStats, Request, RequestError, Update
from gramme.serve.messages import (
    MAX_MESSAGE_BYTES,
    Abort,
    Failed,
    Finish,
    Ready,
    Refused,
    Start,
    Submit,
    Updates,
    from_engine,
    pack,
)


class EngineDead(RuntimeError):
    """The engine process has ended; no request can be answered."""


class AsyncLLM:
    """`ready` is None while the engine loads, `dead` says why it ended."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None = None):
        self.ready: Ready | None = None
        self.dead: str | None = None
        self.stats = EngineStats()
        self._sock, self._process = sock, process
        self._waiting: dict[str, asyncio.Queue[Update | Exception]] = {}

    @classmethod
    def spawn(cls, config: EngineConfig) -> "AsyncLLM":
        """A fresh interpreter, not a fork."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "gramme.serve.worker", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        ours.sendall(pack(Start(config)))
        return cls(ours, process)

    @property
    def fingerprint(self) -> str | None:
        """Changes when the same seed may give other tokens: another model, other kernels, other number formats."""
        if self.ready is None:
            return None
        plan = self.ready.plan
        said = f"{self.ready.model} {plan.backend} {plan.dtype} {plan.kv_dtype}"
        return "fp_" + sha256(said.encode()).hexdigest()[:10]

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        self._writer.close()
        self._reading.cancel()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)

    async def generate(self, request: Request) -> AsyncIterator[Update]:
        """Updates until every sample has ended; closing the generator earlier ends the request.

        Raises RequestError when the engine refuses it and EngineDead when the engine ends.
        """
        if self.dead is not None:
            raise EngineDead(self.dead)
        queue = self._waiting[request.id] = asyncio.Queue()
        self._writer.write(pack(Submit(request)))
        left = request.params.n
        try:
            while left:
                update = await queue.get()
                if isinstance(update, Exception):
                    left = 0
                    raise update
                left -= update.finish_reason is not None
                yield update
        finally:
            del self._waiting[request.id]
            if left:
                self._writer.write(pack(Abort(request.id)))

    def finish(self, request_id: str, index: int) -> None:
        self._writer.write(pack(Finish(request_id, index)))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "the engine process ended"
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "little")
                if size > MAX_MESSAGE_BYTES:
                    raise ConnectionError(f"a message of {size} bytes")
                why = self._take(from_engine.decode(await reader.readexactly(size))) or why
        except (asyncio.IncompleteReadError, ConnectionError):
            self.dead = why
            for queue in self._waiting.values():
                queue.put_nowait(EngineDead(why))

    def _take(self, message: Ready | Refused | Updates | Failed) -> str | None:
        match message:
            case Ready():
                self.ready = message
            case Failed(text):
                return text
            case Refused(id, text, param):
                self._give(id, RequestError(text, param))
            case Updates(updates, stats):
                self.stats = stats
                for update in updates:
                    self._give(update.id, update)
        return None

    def _give(self, request_id: str, what: Update | Exception) -> None:
        if request_id in self._waiting:  # otherwise its client has gone
            self._waiting[request_id].put_nowait(what)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
