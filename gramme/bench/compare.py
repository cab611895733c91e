"""`gramme bench compare A B`: ratios of two results of the same workload, and which of them are more than chance.

What was served may differ, what was asked may not. Chance: an exact permutation test of rank sums (Wilcoxon 1945) over
the repeats of `bench run`, or over the medians of 8 to 20 stretches of requests one after another in `bench serve`:
requests that queue together are not independent, stretches nearly are. What differs between two sittings it cannot see.
"""
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gramme.config import ConfigError

STRETCHES, LEAST_STRETCHES, LEAST_IN_STRETCH = 20, 8, 3
CHANCE = 0.05  # above it a difference is called none
THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput", "request_goodput", "goodput_share")
LATENCIES = tuple(f"{which}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el")
                  for which in ("median", "p90", "p99"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    a: float
    b: float
    more_is_better: bool
    p: float | None = None  # of a difference as large by chance; None: nothing was repeated

    @property
    def ratio(self) -> float | None:
        return self.b / self.a if self.a else None

    @property
    def verdict(self) -> str:
        if self.p is None or self.a == self.b:
            return ""
        if self.p >= CHANCE:
            return "no difference shown"
        return "B is better" if (self.b > self.a) == self.more_is_better else "B is worse"


def read(path: Path) -> dict[str, Any]:
    """A result's record: a file of JSON, or the last line of what a bench printed. Raises ConfigError."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    for piece in (text, text.rpartition("\n")[2]):
        try:
            found = json.loads(piece)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and found.get("bench") in list(ROWS) and isinstance(found.get("workload"), dict):
            return found
    raise ConfigError(f"{path} is no result of bench run, serve or sweep")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Row]:
    """Raises ConfigError, naming what differs, for two workloads that are not the same."""
    if a["bench"] != b["bench"]:
        raise ConfigError(f"bench {a['bench']} and bench {b['bench']} measure different things")
    if (what := difference(a["workload"], b["workload"])) is not None:
        raise ConfigError(f"the workloads differ: {what}")
    try:
        return list(ROWS[a["bench"]](a, b))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"a result is not whole: {error!s:.80}") from None


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first thing that two workloads do not share, in words."""
    for key in [*a, *(k for k in b if k not in a)]:
        if a.get(key) != b.get(key):
            return f"{key} is {a.get(key)!r:.100} and {b.get(key)!r:.100}"
    return None


def chance(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Probability that a random split of all values into two such groups has rank sums as far apart, by counting all
    splits; ties share their rank. None with fewer than two values on a side."""
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        return None
    values = np.concatenate([a, b])
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") + 1  # twice the middle rank
    total = int(ranks.sum())
    ways = np.zeros((n + 1, total + 1))  # groups of i values whose ranks add up to s
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : total + 1 - rank]
    distance = np.abs(np.arange(total + 1) * (n + m) - n * total)
    return float(ways[n, distance >= abs(int(ranks[:n].sum()) * (n + m) - n * total)].sum() / ways[n].sum())


def stretches(values: Sequence[float | None]) -> list[float]:
    """Medians of runs of values one after another, what failed left out; none where they are too few."""
    found = [v for v in values if v is not None]
    count = min(STRETCHES, len(found) // LEAST_IN_STRETCH)
    if count < LEAST_STRETCHES:
        return []
    return [float(np.median(part)) for part in np.array_split(np.asarray(found), count)]


def _run_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    for name, one in a["results"].items():
        other = b["results"][name]
        p = chance(_few(one["repeats_s"]), _few(other["repeats_s"]))
        yield Row(name=f"{name} tokens/s", a=one["tokens_per_s"], b=other["tokens_per_s"], more_is_better=True, p=p)
    yield Row(name="memory, MB", a=a["memory"]["measured_bytes"] / 1e6, b=b["memory"]["measured_bytes"] / 1e6,
              more_is_better=False)


def _serve_rows(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    for name in (*THROUGHPUTS, *LATENCIES, "failed"):
        if a[name] is None or b[name] is None:
            continue
        which, _, metric = name.partition("_")
        repeated = which == "median" and metric in a["requests"]
        p = chance(stretches(a["requests"][metric]), stretches(b["requests"][metric])) if repeated else None
        yield Row(name=prefix + name, a=a[name], b=b[name], more_is_better=name in THROUGHPUTS, p=p)


def _sweep_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    if a["knee"] is not None and b["knee"] is not None:
        yield Row(name="knee, requests/s", a=a["knee"], b=b["knee"], more_is_better=True)
    for rate, one in a["points"].items():
        if rate in b["points"]:
            if (what := difference(one["workload"], b["points"][rate]["workload"])) is not None:
                raise ConfigError(f"the workloads at {rate}/s differ: {what}")
            yield from _serve_rows(one, b["points"][rate], f"{rate}/s ")


ROWS = {"run": _run_rows, "serve": _serve_rows, "sweep": _sweep_rows}


def _few(values: Sequence[float]) -> Sequence[float]:
    return values if len(values) <= STRETCHES else stretches(values)


def table(rows: Sequence[Row]) -> Iterator[str]:
    wide = max(len(r.name) for r in rows)
    yield f"{'':{wide}} {'A':>12} {'B':>12} {'B / A':>8} {'p':>8}"
    for r in rows:
        ratio = "" if r.ratio is None else f"{r.ratio:.3f}"
        p = "" if r.p is None else f"{r.p:.2g}"
        yield f"{r.name:{wide}} {r.a:12.5g} {r.b:12.5g} {ratio:>8} {p:>8} {r.verdict}".rstrip()
