"""`gramme bench sweep`: one workload at several rates; the knee, a table in Markdown and a plot in PNG.

The knee is the highest offered rate of which at least 95 % of the requests were answered within the limits.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramme.config import ConfigError

KNEE_SHARE = 0.95
# A search begins here, ends with rates this close on both sides of the knee, and gives up below and beyond these.
FIRST_RATE, CLOSE, LEAST_RATE, MOST_POINTS = 1.0, 1.25, 0.1, 16

Points = Mapping[float, Mapping[str, Any]]  # records of `serve.measure` by rate


def parse_rates(text: str) -> list[float] | None:
    """"1,2,4" -> rates in order; None for "auto". Raises ConfigError."""
    if text == "auto":
        return None
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < r < math.inf for r in rates):
        raise ConfigError(f"--rates must be auto or numbers above 0 such as 1,2,4,8, not {text!r:.60}")
    return rates


def following(rates: Sequence[float] | None, points: Points) -> float | None:
    """The next rate to measure, None when all is done. A search doubles until the knee is passed, or halves until it is
    found, then takes the middle."""
    if rates is not None:
        return next((r for r in rates if r not in points), None)
    if not points:
        return FIRST_RATE
    if len(points) >= MOST_POINTS:
        return None
    good, bad = [r for r in points if holds(points[r])], [r for r in points if not holds(points[r])]
    if not bad:
        return max(points) * 2
    above = min(bad)
    below = max((r for r in good if r < above), default=None)
    if below is None:
        return above / 2 if above / 2 >= LEAST_RATE else None
    return None if above / below <= CLOSE else float(f"{math.sqrt(above * below):.3g}")


def holds(record: Mapping[str, Any]) -> bool:
    return (record["goodput_share"] or 0.0) >= KNEE_SHARE


def knee(points: Points) -> float | None:
    """The highest rate that held; None when none did."""
    return max((r for r, record in points.items() if holds(record)), default=None)


def sweep(rates: Sequence[float] | None, points: Points, measure: Callable[[float], dict[str, Any]],
          keep: Callable[[Points], None]) -> tuple[dict[float, Any], bool]:
    """All points, those that were there included, and whether an interrupt ended it. Each point is kept as soon as it
    is whole; one that was interrupted is not."""
    made = dict(points)
    while (rate := following(rates, made)) is not None:
        record = measure(rate)
        if record["interrupted"]:
            return made, True
        made = dict(sorted([*made.items(), (rate, record)]))
        keep(made)
    return made, False


def table(points: Points) -> str:
    """Markdown, a row a rate."""
    columns = ("requests/s offered", "answered/s", "output tokens/s", "in time", "TTFT median, ms", "p99",
               "TPOT median, ms", "p99", "failed", "client late p99, ms")
    rows = [columns, ["---:"] * len(columns)]
    for rate, r in points.items():
        rows.append([f"{rate:g}", f"{r['request_throughput']:.2f}", f"{r['output_throughput']:.1f}",
                     f"{r['goodput_share']:.0%}", *(_ms(r[f"{which}_{name}_ms"]) for name in ("ttft", "tpot")
                                                    for which in ("median", "p99")),
                     str(r["failed"]), _ms(r["client"]["p99_lag_ms"])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(points: Points, title: str, out: Path) -> None:
    """Latencies and the share in time over the offered rate. Needs matplotlib."""
    from matplotlib.figure import Figure

    rates, found = list(points), knee(points)
    figure = Figure(figsize=(9, 3), dpi=90, layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("ttft", "tpot")):
        for which in ("median", "p90", "p99"):
            values = [points[r][f"{which}_{name}_ms"] for r in rates]
            axes.plot(rates, [math.nan if v is None else v for v in values], ".-", linewidth=0.9, label=which)
        axes.set(yscale="log", ylabel=f"{name.upper()}, ms")
        axes.legend(frameon=False)
    panels[2].plot(rates, [100 * (points[r]["goodput_share"] or 0.0) for r in rates], "k.-", linewidth=0.9)
    panels[2].axhline(100 * KNEE_SHARE, color="0.8", linewidth=0.8)
    panels[2].set(ylabel="answered in time, %", ylim=(0, 104))
    for axes in panels:
        axes.set(xscale="log", xlabel="requests offered a second")
        if found is not None:
            axes.axvline(found, color="0.7", linestyle="--", linewidth=0.8)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(out)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
