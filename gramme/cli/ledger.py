"""The time to a first token as one line: a bar whose segments are proportional to its parts, or plain text."""
from collections.abc import Mapping
from itertools import pairwise

from gramme.request import Stamps

LEAST_BAR = 16  # columns; below it there are only numbers


def line(stamps: Stamps, cached: int, computed: int, columns: int | None) -> str:
    """`columns` of the terminal, which the line does not pass; None: not a terminal. Times are milliseconds."""
    parts = {name: ns / 1e6 for name, ns in stamps.parts().items()}
    head = f"first token {stamps.ttft_ns / 1e6:.1f} ms"
    tokens = f"{cached} tokens cached, {computed} computed"
    if columns is None:
        return f"{head} = " + " + ".join(_label(*part) for part in parts.items()) + f"; {tokens}"
    room = columns - len(head) - 1
    if room < LEAST_BAR:
        return head[:columns]
    tail = " " + " ".join(_label(*part) for part in parts.items() if part[1])
    if len(tail) > room - LEAST_BAR:
        tail = ""
    if len(tail) + len(tokens) + 2 <= room - LEAST_BAR:
        tail += f"; {tokens}"
    return f"{head} {bar(parts, room - len(tail))}{tail}"


def bar(parts: Mapping[str, float], width: int) -> str:
    """|queue 1.5-|prefill 3.1--------|f|: exactly `width` columns, labels as far as they fit; no part of no time."""
    shown = {name: time for name, time in parts.items() if time > 0}
    widths = _shares(list(shown.values()), width - 1 - len(shown))
    labels = (text if len(text := _label(*part)) <= w else part[0][:w] for part, w in zip(shown.items(), widths))
    return "|" + "|".join(label.ljust(w, "-") for label, w in zip(labels, widths)) + "|"


def _shares(times: list[float], columns: int) -> list[int]:
    """Whole columns in proportion to the times, their sum exact: the cumulated times are rounded."""
    total, at, edges = sum(times), 0.0, [0]
    for time in times:
        at += time
        edges.append(round(columns * at / total))
    return [after - before for before, after in pairwise(edges)]


def _label(name: str, milliseconds: float) -> str:
    return f"{name} {milliseconds:.2g}" if milliseconds < 1 else f"{name} {milliseconds:.1f}"
