"""What is asked when: arrival times and lengths, from a trace or a Poisson process. Knows no server and no text."""
import csv
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gramme.config import ConfigError

# Columns of published traces, without case and signs: Azure 2023 and 2024, BurstGPT, Vidur.
COLUMNS = {
    "arrival time": ("timestamp", "arrivedat", "arrivaltime"),
    "prompt tokens": ("contexttokens", "requesttokens", "numprefilltokens", "prompttokens"),
    "output tokens": ("generatedtokens", "responsetokens", "numdecodetokens", "outputtokens"),
}
MOST_TOKENS, MOST_REQUESTS, MOST_S = 1 << 24, 10**6, 1e9


@dataclass(frozen=True, slots=True)
class Ask:
    at_s: float  # after the beginning
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    asks: tuple[Ask, ...]  # in order of time, the first at or after 0
    window_s: float  # in which they arrive
    source: str  # in words

    @property
    def rate(self) -> float:
        """Requests offered a second; infinite when all come at once."""
        return len(self.asks) / self.window_s if self.window_s else math.inf

    def facts(self) -> dict[str, Any]:
        """Two workloads with equal facts ask the same of a server."""
        n, each = len(self.asks), [(round(a.at_s, 6), a.prompt_tokens, a.output_tokens) for a in self.asks]
        digest = hashlib.sha256(repr(each).encode())
        return {"source": self.source, "requests": n, "rate": round(self.rate, 6) if self.window_s else "inf",
                "prompt_tokens": sum(a.prompt_tokens for a in self.asks) / n,
                "output_tokens": sum(a.output_tokens for a in self.asks) / n, "digest": digest.hexdigest()[:16]}


def poisson(rate: float, window_s: float, most: int, prompt_tokens: int, output_tokens: int, seed: int) -> Workload:
    """Independent arrivals at `rate` a second for `window_s`, at most `most`; an infinite rate: `most` at once."""
    if not rate > 0:
        raise ConfigError(f"the rate must be above 0 requests a second, not {rate:g}")
    if math.isinf(rate):
        times = [0.0] * most
        window_s = 0.0
    else:
        times = list(_before(window_s, _steps(rate, most, seed)))
        window_s = window_s if len(times) < most else times[-1]
    asks = tuple(Ask(t, prompt_tokens, output_tokens) for t in times)
    return _checked(Workload(asks=asks, window_s=window_s, source=f"poisson, seed {seed}"))


def trace(path: Path, most: int = MOST_REQUESTS) -> Workload:
    """The first `most` requests of a CSV file as they arrived. Raises ConfigError with the line that is wrong.

    Rows without a prompt or without an answer, which are failures in some traces, are left out and counted.
    """
    rows, empty = list[Ask](), 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for ask in _rows(file, path.name):
                whole = ask.prompt_tokens > 0 and ask.output_tokens > 0
                empty += not whole
                if whole and len(rows) < most:
                    rows.append(ask)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path.name} is not a CSV file: {error!s:.120}") from None
    rows.sort(key=lambda a: a.at_s)
    first_s = rows[0].at_s if rows else 0.0
    asks = tuple(replace(a, at_s=a.at_s - first_s) for a in rows)
    span_s = asks[-1].at_s if asks else 0.0
    source = f"trace {path.name}" + (f", {empty} empty rows left out" if empty else "")
    return _checked(Workload(asks=asks, window_s=span_s * len(asks) / max(1, len(asks) - 1), source=source))


def stretched(w: Workload, scale: float) -> Workload:
    """All arrival times multiplied by `scale`: 0.5 is twice the rate."""
    if not 0 < scale < math.inf:
        raise ConfigError(f"the time scale must be a number above 0, not {scale:g}")
    asks = tuple(replace(a, at_s=a.at_s * scale) for a in w.asks)
    return _checked(replace(w, asks=asks, window_s=w.window_s * scale, source=f"{w.source}, time scale {scale:.6g}"))


def at_rate(w: Workload, rate: float) -> Workload:
    """Stretched so that `rate` requests arrive a second on average."""
    if not 0 < rate < math.inf or not w.window_s:
        raise ConfigError(f"a trace cannot be brought to {rate:g} requests a second")
    return stretched(w, w.rate / rate)


def shortened(w: Workload, window_s: float) -> Workload:
    """Only what arrives within `window_s`."""
    if window_s >= w.window_s:
        return w
    return _checked(replace(w, asks=tuple(a for a in w.asks if a.at_s < window_s), window_s=window_s))


def resized(w: Workload, scale: float, most_prompt: int | None, most_output: int | None) -> Workload:
    """All lengths multiplied by `scale` and rounded up, then cut to at most so many tokens."""
    if not 0 < scale < math.inf or min(most_prompt or 1, most_output or 1) < 1:
        raise ConfigError("lengths need a scale above 0 and a limit of at least one token")
    prompt, output = most_prompt or MOST_TOKENS, most_output or MOST_TOKENS
    asks = tuple(Ask(a.at_s, min(math.ceil(a.prompt_tokens * scale), prompt),
                     min(math.ceil(a.output_tokens * scale), output)) for a in w.asks)
    return replace(w, asks=asks)


def _steps(rate: float, most: int, seed: int) -> Iterator[float]:
    r, at_s = random.Random(seed), 0.0
    for _ in range(most):
        at_s += r.expovariate(rate)
        yield at_s


def _before(end_s: float, times: Iterator[float]) -> Iterator[float]:
    for t in times:
        if t >= end_s:
            return
        yield t


def _rows(file: Iterator[str], name: str) -> Iterator[Ask]:
    lines = csv.reader(file)
    header = [_plain(cell) for cell in next(lines, [])]
    at, prompt, output = (_column(header, wanted, name) for wanted in COLUMNS)
    for cells in lines:
        if not cells:
            continue
        try:
            yield Ask(_seconds(cells[at]), _tokens(cells[prompt]), _tokens(cells[output]))
        except (ValueError, IndexError, OverflowError):
            raise ConfigError(f"{name}, line {lines.line_num}: a time and two numbers of tokens are needed, not "
                              f"{','.join(cells)!r:.60}") from None


def _column(header: Sequence[str], wanted: str, name: str) -> int:
    found = [i for i, cell in enumerate(header) if cell in COLUMNS[wanted]]
    if len(found) != 1:
        raise ConfigError(f"{name} must have one column for the {wanted}, called {' or '.join(COLUMNS[wanted])}")
    return found[0]


def _plain(cell: str) -> str:
    return "".join(c for c in cell.lower() if c.isalnum())


def _seconds(cell: str) -> float:
    """Seconds, or a date with a time."""
    try:
        value = float(cell)
    except ValueError:
        value = datetime.fromisoformat(cell.strip()).timestamp()
    if not abs(value) < 1e12:
        raise ValueError
    return value


def _tokens(cell: str) -> int:
    value = float(cell)
    if not 0 <= value <= MOST_TOKENS or value != int(value):
        raise ValueError
    return int(value)


def _checked(w: Workload) -> Workload:
    if not w.asks:
        raise ConfigError(f"{w.source}: no request arrives in {w.window_s:g} s")
    if len(w.asks) > MOST_REQUESTS or w.window_s > MOST_S:
        raise ConfigError(f"{w.source}: at most {MOST_REQUESTS} requests in {MOST_S:g} s")
    return w
