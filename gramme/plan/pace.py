"""How long until a first token: the plan's prediction of a step, corrected by the steps that ran. Knows no clock.

A prompt runs in steps of at most `chunk` tokens, which it shares with the prompts before it and with the sequences that
decode. What a step takes is the plan's tariff times how far off that was for the latest steps of its size.
"""
import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from gramme.config import Tariff

RECENT = 5  # steps of a size; their median counts, so that a machine that slept once has not become slow
CACHED_TOKENS = 4096  # of the latest prompts, by which the share of cached tokens is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What an engine has before it when a request comes."""

    waiting_tokens: int = 0  # of prompts that no step has met
    running_tokens: int = 0  # of prompts that are being computed: what is left of them
    rows: int = 0  # sequences that decode
    elapsed_s: float = 0.0  # since the step that runs began
    rows_wait_s: float = 0.0  # until there is a row for it


class Pace:
    """Learns from `ran` and `found`; `first_token_s` predicts. `chunk`: tokens of the largest step."""

    def __init__(self, tariff: Tariff, chunk: int):
        self._tariff, self._chunk = tariff, chunk
        self._ratios: dict[int, deque[float]] = {}  # by size of step: measured over planned
        self._computed = 1.0  # part of a prompt that is not cached

    def ran(self, prompt_tokens: int, rows: int, seconds: float) -> None:
        """A step of so many prompt tokens and rows that decode has ended."""
        if seconds > 0 and prompt_tokens + rows > 0:
            ratios = self._ratios.setdefault(_size(prompt_tokens), deque(maxlen=RECENT))
            ratios.append(seconds / self._planned_s(prompt_tokens, rows))

    def found(self, tokens: int, cached: int) -> None:
        """Prompts of so many tokens were begun, and so many of these were cached."""
        if tokens > 0:
            self._computed += (1 - math.exp(-tokens / CACHED_TOKENS)) * (1 - cached / tokens - self._computed)

    def step_s(self, prompt_tokens: int, rows: int) -> float:
        """Seconds of a step; of a size that did not run yet, as far off as the nearest that did."""
        size = _size(prompt_tokens)
        known = min(self._ratios, key=lambda other: abs(other - size), default=None)
        return self._planned_s(prompt_tokens, rows) * (1.0 if known is None else median(self._ratios[known]))

    @property
    def largest(self) -> int:
        """Prompt tokens of the largest step that is known well, down to a power of two; 0: none is."""
        return max((1 << size - 1 for size in self._well_known if size), default=0)

    @property
    def decodes(self) -> bool:
        """Whether steps that only decode are known well."""
        return 0 in self._well_known

    @property
    def _well_known(self) -> list[int]:
        return [size for size, ratios in self._ratios.items() if len(ratios) == RECENT]

    def first_token_s(self, prompt_tokens: int, ahead: Ahead) -> float:
        """Seconds until a prompt that comes now has its first token."""
        room = max(1, self._chunk - ahead.rows)
        before = math.ceil(ahead.running_tokens + self._computed * ahead.waiting_tokens)
        own = max(1, math.ceil(self._computed * prompt_tokens))
        now = min(room, before)
        current_s = max(0.0, self.step_s(now, ahead.rows) - ahead.elapsed_s) if now + ahead.rows else 0.0
        line = before - now
        in_line_s = current_s + self._steps_s(_filled(line + own, room) if line else own, room, ahead.rows)
        return max(in_line_s, ahead.rows_wait_s + self._steps_s(own, room, ahead.rows))

    def _steps_s(self, tokens: int, room: int, rows: int) -> float:
        full, rest = divmod(tokens, room)
        return full * self.step_s(room, rows) + (self.step_s(rest, rows) if rest else 0.0)

    def _planned_s(self, prompt_tokens: int, rows: int) -> float:
        t, outputs = self._tariff, rows + (prompt_tokens > 0)
        return t.step_s + t.head_s + (prompt_tokens + rows) * t.token_s + outputs * t.output_s


def _filled(tokens: int, room: int) -> int:
    """Where a line stands, those who come later fill the last step."""
    return -(-tokens // room) * room


def _size(prompt_tokens: int) -> int:
    """Steps are alike within a factor of two of their prompt tokens."""
    return prompt_tokens.bit_length()
