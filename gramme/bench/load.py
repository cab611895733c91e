"""Sends each request at its time, whatever became of those before it, and notes what a client saw.

Latencies begin at the time at which a request was to be sent, not at that at which this process got round to it: a
server that stalls, or a client that is late, does not make the waiting of others disappear (no coordinated omission).
How late the client was is noted too.
"""
import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gramme.bench.client import Answer, Target, send
from gramme.bench.workload import Ask

LEAD_S = 0.1  # from the call to the first arrival
TELL_S = 0.5  # between reports of progress
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request; times in seconds after it was to be sent."""

    ask: Ask
    lag_s: float = 0.0  # of the client
    ttft_s: float = 0.0  # to the first chunk with content
    e2el_s: float = 0.0  # to the last chunk of the answer
    gaps_s: tuple[float, ...] = ()  # between chunks with content
    prompt_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False  # else tokens are what was asked, and the chunks that came
    failure: str | None = None
    detail: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None: there was no second."""
        return (self.e2el_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(slots=True)
class Tally:
    """How far a run is."""

    all: int
    sent: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    outcomes: tuple[Outcome, ...]  # of what was sent, in order of arrival
    duration_s: float  # from the first moment of the workload to the last answer
    cpu_s: float  # that this process took meanwhile
    interrupted: bool


class Interrupt:
    """`now()` ends a run: nothing more is sent, what is open is given up."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.tasks: list[asyncio.Task[Outcome]] = []

    def now(self) -> None:
        self.event.set()
        for task in self.tasks:
            task.cancel()


async def drive(target: Target, asks: Sequence[Ask], request: Callable[[int, Ask], bytes], limit_s: float,
                interrupt: Interrupt, tell: Callable[[Tally], None] = lambda tally: None) -> Run:
    """`request` makes the bytes of each, just before its time; no answer is awaited longer than `limit_s`."""
    loop, tally = asyncio.get_running_loop(), Tally(len(asks))
    began_s, cpu_s = time.perf_counter() + LEAD_S, time.process_time()

    def start(ask: Ask, data: bytes) -> None:
        tally.sent += 1
        interrupt.tasks.append(loop.create_task(_one(target, ask, data, began_s + ask.at_s, limit_s, tally)))

    def pace() -> None:
        """In a thread: its sleep ends within a tenth of a millisecond, an event loop's within one."""
        for i, ask in enumerate(asks):
            data = request(i, ask)
            if interrupt.event.wait(max(0.0, began_s + ask.at_s - time.perf_counter())):
                return
            loop.call_soon_threadsafe(start, ask, data)

    telling = loop.create_task(_report(tally, began_s, tell))
    await loop.run_in_executor(None, pace)
    await asyncio.sleep(0)  # the last start comes before this
    if interrupt.event.is_set():
        interrupt.now()
    found = await asyncio.gather(*interrupt.tasks, return_exceptions=True)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling
    tally.ended = True
    tell(tally)
    outcomes = tuple(_settled(ask, o) for ask, o in zip(asks, found))
    return Run(outcomes, time.perf_counter() - began_s, time.process_time() - cpu_s, interrupt.event.is_set())


def _settled(ask: Ask, found: Outcome | BaseException) -> Outcome:
    if isinstance(found, asyncio.CancelledError):
        return Outcome(ask=ask, failure=INTERRUPTED)
    if isinstance(found, BaseException):
        raise found
    return found


async def _one(target: Target, ask: Ask, data: bytes, due_s: float, limit_s: float, tally: Tally) -> Outcome:
    lag_s = time.perf_counter() - due_s
    made = outcome(ask, await send(target, data, limit_s), due_s, lag_s)
    tally.done += 1
    tally.failed += made.failure is not None
    tally.tokens += made.output_tokens
    return made


def outcome(ask: Ask, a: Answer, due_s: float, lag_s: float) -> Outcome:
    """An answer as its client saw it."""
    if a.failure is None and not a.times_s:
        a.fail("no content", "an answer without a token" if a.body == b"" else a.body[:200])
    if a.failure is not None:
        return Outcome(ask=ask, lag_s=lag_s, failure=a.failure, detail=a.detail)
    gaps_s = tuple(after - before for before, after in zip(a.times_s, a.times_s[1:]))
    return Outcome(
        ask=ask, lag_s=lag_s, ttft_s=a.times_s[0] - due_s, e2el_s=a.ended_s - due_s, gaps_s=gaps_s,
        prompt_tokens=a.usage.prompt_tokens if a.usage else ask.prompt_tokens,
        output_tokens=a.usage.completion_tokens if a.usage else a.counted_tokens, has_usage=a.usage is not None,
    )


async def _report(tally: Tally, began_s: float, tell: Callable[[Tally], None]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        tally.elapsed_s = max(0.0, time.perf_counter() - began_s)
        tell(tally)
