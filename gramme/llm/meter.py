"""Where the machine's time goes: to the rows that caused it, to no row while there was work, or to idleness.

The three add up to the time since the engine was ready, since each moment is counted once: a step's time runs from what
was counted last to its commit. Knows rows and a clock's readings, no queue and no array.
"""
from collections.abc import Sequence

from gramme.config import Tariff
from gramme.core.batch import Row
from gramme.llm.energy import PowerMeter
from gramme.plan.receipts import Piece, Power, share
from gramme.request import Spent


class Meter:
    def __init__(self, tariff: Tariff, power: PowerMeter, now_s: float):
        self.total, self.other_s, self.idle_s = Spent(), 0.0, 0.0
        self._tariff, self._power = tariff, power
        self._counted_s, self._ended_s, self._busy = now_s, now_s, False

    @property
    def power(self) -> Power:
        return self._power.power

    def begin(self, now_s: float) -> None:
        """A step begins. What has passed since the last one is nobody's."""
        gap = now_s - self._ended_s
        if self._busy:
            self.other_s += gap
        else:
            self.idle_s += gap
            self._power.restart(now_s)
        self._counted_s += gap

    def charge(self, now_s: float, pieces: Sequence[Piece]) -> list[Spent]:
        """Share what has passed, gaps between steps aside, among the rows of a step that has come back."""
        seconds, self._counted_s = now_s - self._counted_s, now_s
        parts = share(self._tariff, seconds, pieces, self.power.watts or 0.0)
        if not parts:
            self.other_s += seconds
        self.total = Spent(*map(sum, zip(self.total, *parts)))
        return parts

    def end(self, now_s: float, busy: bool) -> None:
        """A step ends, or the handing over of what it brought; `busy`: there is work left."""
        if not busy:  # nobody else will come to pay for the end of it
            self.other_s += now_s - self._counted_s
            self._counted_s = now_s
        self._power.read(now_s, last=not busy)
        self._ended_s, self._busy = now_s, busy


def piece(row: Row, had: int, late: bool, new_tokens: int, scored: int) -> Piece:
    """What a committed row ran. `had`, `late`: as its sequence was before; `new_tokens`: how many the row brought.

    `late`: the sequence had ended when the row came back.
    """
    outputs = scored + (1 + len(row.draft) if row.samples else 0)
    if late:
        return Piece(row.start, outputs, 0, 0, 0, rejected=len(row.tokens))
    rejected = len(row.draft) - max(new_tokens - 1, 0) if row.draft else 0
    end = row.start + len(row.tokens) - rejected
    fresh = max(row.start, min(end, had))
    prefill = max(0, min(end, row.seq.prompt_len) - fresh)
    return Piece(row.start, outputs, prefill, end - fresh - prefill, fresh - row.start, rejected)
