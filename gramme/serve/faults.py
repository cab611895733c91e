"""Faults that tests put into the engine's process from outside; off unless GRAMME_FAULTS names them.

"raise:10"      the tenth step raises
"nan:2,7"       the logits of sequences whose first prompt token is 7 are NaN from their second position on
"pages:10"      ten of a hundred times the pool says that it has no page
"slow:50"       up to 50 ms of delay, seeded, before each step
"stuck"          no step runs anything, though requests wait
"refuse"        taking any request whose first prompt token is 13 raises
"leak:1000"     each request leaves 1,000 kB behind: what the soak must catch
Several are separated by semicolons.
"""
import random
import time
from collections.abc import Callable
from typing import Any

from gramme.config import ConfigError
from gramme.llm.engine import Engine

MARKED_TOKEN = 13  # a request whose prompt begins with it is refused by "refuse"


def install(engine: Engine, spec: str) -> None:
    """Raises ConfigError for a fault that there is not."""
    for part in filter(None, spec.split(";")):
        name, _, argument = part.partition(":")
        if name not in FAULTS:
            raise ConfigError(f"GRAMME_FAULTS: there is no fault {name!r:.40}")
        FAULTS[name](engine, argument)


def _raise(engine: Engine, argument: str) -> None:
    left = [int(argument)]

    def launch(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("a fault was asked for")
        return launched(*args)

    launched, engine.runner.launch = engine.runner.launch, launch  # type: ignore[method-assign]


def _nan(engine: Engine, argument: str) -> None:
    position, token = map(int, argument.split(","))
    choose = engine.runner._choose

    def poison(logits: Any, batch: Any, chunk: Any, choosers: Any) -> Any:
        bad = [i for i, w in enumerate(chunk)
               if batch.rows[w.row].seq.tokens[0] == token and w.position >= position]
        logits[bad] = float("nan")
        return choose(logits, batch, chunk, choosers)

    engine.runner._choose = poison  # type: ignore[method-assign]


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


def _stuck(engine: Engine, argument: str) -> None:
    engine.scheduler.max_batch_tokens = 0


def _refuse(engine: Engine, argument: str) -> None:
    add = engine.add

    def refusing(request: Any) -> None:
        if request.prompt_token_ids[0] == MARKED_TOKEN:
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


FAULTS: dict[str, Callable[[Engine, str], None]] = {
    "raise": _raise, "nan": _nan, "pages": _pages, "slow": _slow, "stuck": _stuck, "refuse": _refuse, "leak": _leak,
}
