"""Owns the engine process and shares it among asyncio tasks. Knows no HTTP and no text."""
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256

from gramme.config import EngineConfig, Plan
from gramme.plan.limits import resident_bytes
from gramme.request import EngineStats, Request, RequestError, Update
from gramme.serve.messages import (
    MAX_MESSAGE_BYTES,
    Abort,
    Failed,
    Finish,
    FromEngine,
    Ping,
    Ready,
    Refused,
    Start,
    Submit,
    Updates,
    from_engine,
    pack,
)

PINGS = 4  # in the time that a step may take
STALLS_TO_DEATH = 10  # after so many stall limits without a sign of life the engine is killed


class EngineDead(RuntimeError):
    """The engine process has ended; no request can be answered."""


class EngineFault(RuntimeError):
    """The engine could not take this request, and not because of the request."""


class AsyncLLM:
    """`ready` is None while the engine loads; `ended` is set when it has, and `failed` then says why, if it said so."""

    def __init__(self, config: EngineConfig, stall_limit_s: float = 60.0):
        self.config, self.stall_limit_s = config, stall_limit_s
        self.stats = EngineStats()
        self.watch: Callable[[Plan, EngineStats], None] = lambda plan, stats: None  # called when `stats` is new
        self._waiting: dict[str, asyncio.Queue[Update | Exception]] = {}
        self._spawn()

    def _spawn(self) -> None:
        """A fresh interpreter, not a fork."""
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.ended = asyncio.Event()
        self._unanswered = 0  # pings since the last progress: while all is stopped, none is sent, and none is missed
        self._sock, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "gramme.serve.worker", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._sock.sendall(pack(Start(self.config)))

    @property
    def fingerprint(self) -> str | None:
        """Changes when the same seed may give other tokens: another model, other kernels, other number formats."""
        if self.ready is None:
            return None
        plan = self.ready.plan
        said = f"{self.ready.model} {plan.backend} {plan.dtype} {plan.kv_dtype}"
        return "fp_" + sha256(said.encode()).hexdigest()[:10]

    @property
    def stalled(self) -> bool:
        """No step that ran anything has ended, and no ping was answered in idleness, for longer than the limit.

        A long prompt gets on by its chunks.
        """
        return self.ready is not None and self._unanswered > PINGS

    @property
    def taken_bytes(self) -> int:
        """What the engine's process takes beyond one that has loaded no model; 0 where the system does not say."""
        taken = resident_bytes(self._process.pid)
        return taken and taken - (self.ready.loaded.without_bytes if self.ready else 0)

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._reading = asyncio.create_task(self._read(reader))
        self._pinging = asyncio.create_task(self._ping())

    async def restart(self) -> None:
        await self.close()
        self._spawn()
        await self.start()

    async def close(self) -> None:
        self._pinging.cancel()
        self._reading.cancel()
        self._writer.close()
        await asyncio.to_thread(_end, self._process)

    def give_up(self) -> None:
        """Every waiter gets EngineDead at once."""
        for queue in self._waiting.values():
            queue.put_nowait(EngineDead("the engine has ended"))

    async def generate(self, request: Request) -> AsyncIterator[Update]:
        """Updates until every sample has ended; closing the generator earlier ends the request.

        Raises RequestError when the engine refuses it and EngineDead when the engine ends.
        """
        if self.ended.is_set():
            raise EngineDead("the engine has ended")
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
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(4), "little")
                if size > MAX_MESSAGE_BYTES:
                    break
                self._take(from_engine.decode(await reader.readexactly(size)))
        self.ended.set()
        self.give_up()

    async def _ping(self) -> None:
        while not self.ended.is_set():
            await asyncio.sleep(self.stall_limit_s / PINGS)
            self._writer.write(pack(Ping()))
            self._unanswered += 1
            if self.stalled and self._unanswered > STALLS_TO_DEATH * PINGS:
                self._process.kill()

    def _take(self, message: FromEngine) -> None:
        if not (isinstance(message, Updates) and _stands_still(message)):
            self._unanswered = 0
        match message:
            case Ready():
                self.ready = message
            case Failed():
                self.failed = message
            case Refused(id, text, param, fault):
                self._give(id, EngineFault(text) if fault else RequestError(text, param))
            case Updates(updates, stats):
                self.stats = stats
                if self.ready is not None:
                    self.watch(self.ready.plan, stats)
                for update in updates:
                    self._give(update.id, update)

    def _give(self, request_id: str, what: Update | Exception) -> None:
        if request_id in self._waiting:  # otherwise its client has gone
            self._waiting[request_id].put_nowait(what)


def _stands_still(message: Updates) -> bool:
    """Steps are made, and nothing runs in them although something should."""
    s = message.stats
    return not message.updates and s.rows == 0 and s.running + s.waiting > 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """It holds nothing that must be saved."""
    process.terminate()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
