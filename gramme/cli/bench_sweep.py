"""`gramme bench sweep`: one load at several rates; prints and writes a table, a plot, and the record to go on from."""
import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gramme.bench.compare import difference, read
from gramme.bench.latency import Slo, parse_slo
from gramme.bench.serve import Subject, measure
from gramme.bench.sweep import KNEE_SHARE, Points, knee, parse_rates, plot, sweep, table
from gramme.cli.bench import million
from gramme.cli.bench_load import DEFAULT_WINDOW, about, end_orderly, progress, save, subject, workload
from gramme.cli.flags import settle
from gramme.cli.options import LoadOptions, SweepOptions
from gramme.config import ConfigError, EngineConfig
from gramme.plan.receipts import said
from gramme.plan.units import parse_seconds

# Flags that all points of a sweep share.
SAME = ("trace", "requests", "duration", "prompt_tokens", "output_tokens", "length_scale", "load_seed", "endpoint",
        "slo", "extra_body")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What stays the same from rate to rate."""

    head: Mapping[str, Any]  # of the record
    asked: LoadOptions
    slo: Slo
    out: Path

    def measure(self, server: Subject, rate: float) -> dict[str, Any]:
        made = measure(server, workload(self.asked, rate), self.slo, parse_seconds(self.asked.timeout),
                       self.asked.load_seed, progress(f"{rate:g}/s"))
        print(f"{rate:g}/s: {made['goodput_share'] or 0.0:.1%} in time, {made['failed']} failed", flush=True)
        return made

    def record(self, points: Points) -> dict[str, Any]:
        return {**self.head, "knee": knee(points), "points": {repr(rate): r for rate, r in points.items()}}

    def finished(self) -> dict[float, Any]:
        """The points of the file that an earlier sweep of the same has left. Raises ConfigError if it is of another."""
        path = self.out.with_suffix(".json")
        if not path.exists():
            return {}
        found = read(path)
        for part in ("subject", "workload"):
            if what := difference(found.get(part) or {}, self.head[part]):
                raise ConfigError(f"{path} holds another sweep: {what}; choose another --out")
        return {float(rate): record for rate, record in found["points"].items()}

    def keep(self, points: Points) -> None:
        save(self.out.with_suffix(".json"), json.dumps(self.record(points)) + "\n")


def main(args: argparse.Namespace) -> int:
    config, asked, own = settle(args, EngineConfig), settle(args, LoadOptions), settle(args, SweepOptions)
    asked, rates, slo, out = (replace(asked, duration=asked.duration or DEFAULT_WINDOW), parse_rates(own.rates),
                              parse_slo(asked.slo), Path(own.out))
    million(config, 0.0)  # found to be wrong now rather than at the end
    if not slo:
        raise ConfigError("a sweep needs --slo, such as --slo ttft:500,tpot:50: the knee is where goodput falls behind")
    workload(asked, rates[0] if rates else 1.0)
    if not find_spec("matplotlib"):
        print("no plot will be drawn: it needs matplotlib (pip install gramme-engine[train])", file=sys.stderr)
    end_orderly()
    try:
        with subject(args, config, asked) as (server, named):
            same = {name: getattr(asked, name) for name in SAME} | {"trace": asked.trace and Path(asked.trace).name}
            head = {"bench": "sweep", **about(datetime.now()), "subject": named, "workload": same}
            one = Sweep(head, asked, slo, out)
            points, interrupted = sweep(rates, one.finished(), lambda rate: one.measure(server, rate), one.keep)
    except KeyboardInterrupt:
        return 130
    _show(one, points)
    if (found := knee(points)) is not None:
        at = points[found]
        cost = million(config, at["duration"] / (at["total_input_tokens"] + at["total_output_tokens"]))
        print(f"at the knee a million tokens, prompts and answers, cost {said(cost)}")
    print(json.dumps({**one.head, "knee": found, "rates": list(points)}))
    return 130 if interrupted else 0


def _show(s: Sweep, points: Points) -> None:
    """The table, on standard output and in Markdown, the plot, and where they are."""
    found, named = knee(points), s.head["subject"]
    where = "below all rates" if found is None else f"at {found:g} requests/s"
    title = f"{named['model']} on {named['server']}: {KNEE_SHARE:.0%} within {s.asked.slo} {where}"
    print(table(points), end="")
    print(title)
    save(s.out.with_suffix(".md"), f"{title}\n\n{table(points)}")
    if points and find_spec("matplotlib"):
        plot(points, title, s.out.with_suffix(".png"))
