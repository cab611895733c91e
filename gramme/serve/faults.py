"""Faults that tests put into the two processes from outside; off unless GRAMME_FAULTS names them.

In the engine's process:
"raise:10"      the tenth step raises                                                                            (F1)
"choose"        deciding about the next token of a marked request raises                                         (F2)
"nan:2,7,inf"   the logits of sequences whose first prompt token is 7 are all inf from their second position on  (F3)
"oom:3"         every third step of more than one token finds no memory; a marked request never finds any        (F4)
"stuck"         no step runs anything, though requests wait                                                      (F8)
"pages:10"      ten of a hundred times the pool says that it has no page                                         (F9)
"slow:50"       up to 50 ms of delay, seeded, before each step                                                   (F10)
"aborts"        one of three messages that end a request is lost, one comes twice, one comes late                (F11)
"refuse"        taking a marked request raises                                                                   (F2)
"leak:1000"     each request leaves 1,000 kB behind: what the soak must catch
In the HTTP process:
"detokenize"    turning the marked token into text raises                                                        (F2)
"late:20"       up to 20 ms of delay, seeded, at each hop through a queue or a socket                            (F10)
In both:
"clock:3600"    the wall clock jumps forwards and backwards by an hour                                           (F13)
Several are separated by semicolons. A request is marked by a prompt that begins with MARKED_TOKEN. The other faults of
the tests need no hook: signals, closed descriptors, limits of the system, full disks.
"""
import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from gramme.config import ConfigError
from gramme.llm.engine import Engine
from gramme.serve.messages import Abort
from gramme.text.detokenizer import Detokenizer

MARKED_TOKEN = 13


def install_engine(spec: str, engine: Engine, inbox: Any) -> None:
    for name, argument in _parts(spec):
        if name in ENGINE:
            ENGINE[name](engine, argument)
        elif name == "aborts":
            _aborts(inbox)


def install_server(spec: str) -> None:
    """Raises ConfigError for a fault that there is not."""
    for name, argument in _parts(spec):
        if name in SERVER:
            SERVER[name](argument)


def _parts(spec: str) -> list[tuple[str, str]]:
    parts = [(name, argument) for name, _, argument in (p.partition(":") for p in spec.split(";") if p)]
    if unknown := [name for name, _ in parts if name not in (*ENGINE, *SERVER, "aborts")]:
        raise ConfigError(f"GRAMME_FAULTS: there is no fault {unknown[0]!r:.40}")
    return parts


def _marked(tokens: Any) -> bool:
    return bool(tokens[0] == MARKED_TOKEN)


def _raise(engine: Engine, argument: str) -> None:
    left, launch = [int(argument)], engine.runner.launch

    def raising(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("a fault was asked for")
        return launch(*args)

    engine.runner.launch = raising  # type: ignore[method-assign]


def _choose(engine: Engine, argument: str) -> None:
    make = engine._sequence

    def raising(*args: Any) -> Any:
        raise KeyError("a fault was asked for")

    def marking(request: Any, index: int) -> Any:
        live = make(request, index)
        if _marked(request.prompt_token_ids):
            live.chooser.edits = raising
        return live

    engine._sequence = marking  # type: ignore[method-assign]


def _nan(engine: Engine, argument: str) -> None:
    (position, token), (value,) = map(int, argument.split(",")[:2]), argument.split(",")[2:] or ["nan"]
    choose = engine.runner._choose

    def poison(logits: Any, batch: Any, chunk: Any, choosers: Any) -> Any:
        bad = [i for i, w in enumerate(chunk)
               if batch.rows[w.row].seq.tokens[0] == token and w.position >= position]
        logits[bad] = float(value)
        return choose(logits, batch, chunk, choosers)

    engine.runner._choose = poison  # type: ignore[method-assign]


def _oom(engine: Engine, argument: str) -> None:
    launch, steps = engine.runner._launch, [0]

    def refusing(batch: Any, *args: Any) -> Any:
        steps[0] += 1
        never = any(_marked(row.seq.tokens) for row in batch.rows)
        if never or (steps[0] % int(argument) == 0 and sum(len(row.tokens) for row in batch.rows) > 1):
            raise engine.runner.device.out_of_memory("a fault was asked for")
        return launch(batch, *args)

    engine.runner._launch = refusing  # type: ignore[method-assign]


def _stuck(engine: Engine, argument: str) -> None:
    engine.scheduler.max_batch_tokens = 0


def _pages(engine: Engine, argument: str) -> None:
    rng, share, pool = random.Random(1), int(argument) / 100, engine.scheduler.pool

    class Refusing(type(pool)):  # type: ignore[misc]
        @property
        def available(self) -> int:
            return 0 if self.used and rng.random() < share else super().available

    pool.__class__ = Refusing


def _slow(engine: Engine, argument: str) -> None:
    rng, step = random.Random(1), engine.step

    def delayed() -> Any:
        time.sleep(rng.random() * int(argument) / 1e3)
        return step()

    engine.step = delayed  # type: ignore[method-assign]


def _refuse(engine: Engine, argument: str) -> None:
    add = engine.add

    def refusing(request: Any) -> None:
        if _marked(request.prompt_token_ids):
            raise KeyError("a fault was asked for")
        add(request)

    engine.add = refusing  # type: ignore[method-assign]


def _leak(engine: Engine, argument: str) -> None:
    kept: list[bytearray] = []
    add = engine.add

    def keeping(request: Any) -> None:
        kept.append(bytearray(b"x") * (int(argument) * 1000))
        add(request)

    engine.add = keeping  # type: ignore[method-assign]


def _aborts(inbox: Any) -> None:
    read, late, seen = inbox.read, [], [0]

    def mixing(wait: bool) -> Any:
        messages = read(wait)
        if messages is None:
            return None
        out, late[:] = list(late), []
        for message in messages:
            if isinstance(message, Abort):
                seen[0] += 1
                out += [[], [message, message], []][seen[0] % 3]
                late.extend([message] if seen[0] % 3 == 2 else [])
            else:
                out.append(message)
        return out

    inbox.read = mixing


def _detokenize(argument: str) -> None:
    feed = Detokenizer.feed

    def raising(self: Detokenizer, ids: Any) -> str:
        if MARKED_TOKEN in ids:
            raise KeyError("a fault was asked for")
        return feed(self, ids)

    Detokenizer.feed = raising  # type: ignore[method-assign]


def _late(argument: str) -> None:
    rng = random.Random(1)

    def delayed(run: Any) -> Any:
        async def later(*args: Any) -> Any:
            made = await run(*args)
            await asyncio.sleep(rng.random() * int(argument) / 1e3)
            return made
        return later

    asyncio.Queue.get = delayed(asyncio.Queue.get)  # type: ignore[method-assign]
    asyncio.StreamReader.readexactly = delayed(asyncio.StreamReader.readexactly)  # type: ignore[method-assign]


def _clock(argument: str) -> None:
    rng, now = random.Random(1), time.time
    time.time = lambda: now() + rng.choice((-1, 1)) * int(argument)


ENGINE: dict[str, Callable[[Engine, str], None]] = {
    "raise": _raise, "choose": _choose, "nan": _nan, "oom": _oom, "stuck": _stuck, "pages": _pages, "slow": _slow,
    "refuse": _refuse, "leak": _leak, "clock": lambda engine, argument: _clock(argument),
}
SERVER: dict[str, Callable[[str], None]] = {"detokenize": _detokenize, "late": _late, "clock": _clock}
