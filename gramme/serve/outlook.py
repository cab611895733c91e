"""When a request that comes now would have its first token, from what the engine did and has to do. Knows no HTTP."""
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from gramme.config import ModelConfig, Plan
from gramme.plan import check
from gramme.plan.check import Check
from gramme.plan.hardware import Hardware
from gramme.plan.pace import Ahead, Pace
from gramme.request import EngineStats, Request

STALE_S = 30.0  # without a step


class Load(Protocol):
    """What is to be admitted, or was and has not ended."""

    arrived_ns: int
    sequences: int
    prompt_tokens: int  # of the prompt whose answer comes first
    waiting_tokens: int  # of the prompts that have no token yet
    predicted_ttft_s: float | None


class Lately(Protocol):
    """What requests took lately, in seconds."""

    sequence_s: float  # a sequence, from its first step to its end
    flush_s: float  # handing over the first of an answer


@dataclass(frozen=True, slots=True)
class Expected:
    """Of a request that comes now."""

    ttft_s: float  # from its arrival
    sequence_s: float  # what a sequence took lately, from its first step to its end
    stale: bool = False  # nothing has run for so long that only a request can tell whether this still holds


class Vectors:
    """Prompts whose vectors are wanted: the first is told when all are there."""

    def __init__(self, requests: Sequence[Request]):
        self.sequences, self.arrived_ns = len(requests), requests[0].stamps.arrived_ns
        self.prompt_tokens = self.waiting_tokens = sum(len(r.prompt_token_ids) for r in requests)
        self.predicted_ttft_s: float | None = None


class Outlook:
    def __init__(self, lately: Lately) -> None:
        self._lately = lately
        self._plan: Plan | None = None
        self._pace: Pace | None = None
        self._stats = EngineStats()
        self._ran_s = time.monotonic()  # when the newest step was seen to end

    def watch(self, plan: Plan, stats: EngineStats) -> None:
        """The engine's counters, after each step."""
        before, self._stats = self._stats, stats
        if self._plan is not plan:  # another engine: it counts from the beginning
            self._plan, self._pace, before = plan, Pace(plan.tariff, plan.max_batch_tokens), EngineStats()
        if self._pace is None or stats.steps == before.steps:
            return
        self._ran_s = time.monotonic()
        now, then = stats.spent, before.spent
        prompt_tokens = now.prefill_tokens + now.recomputed_tokens - then.prefill_tokens - then.recomputed_tokens
        busy_s = now.seconds + stats.other_s - then.seconds - before.other_s  # what passes between two steps too
        self._pace.ran(prompt_tokens, now.decode_tokens - then.decode_tokens, busy_s)
        self._pace.found(stats.prefix_queried_tokens - before.prefix_queried_tokens,
                         stats.prefix_hit_tokens - before.prefix_hit_tokens)

    def checks(self, m: ModelConfig, hardware: Hardware, calibrated: bool) -> list[Check]:
        """The latest steps beside the plan's predictions: the largest that ran of prompts, and one token of one row."""
        p, pace, found = self._plan, self._pace, []
        if p is None or pace is None or p.backend == "cuda":  # a card's ceilings are known to the engine's process only
            return []
        if pace.largest:
            took_s = pace.step_s(pace.largest, 0)
            found.append(check.prefill(m, p, hardware, pace.largest, took_s, calibrated=calibrated))
        if pace.decodes:
            found.append(check.decode(m, p, hardware, [1], pace.step_s(0, 1), calibrated=calibrated))
        return found

    def expected(self, prompt_tokens: int, arrived_ns: int, others: Collection[Load], plan: Plan) -> Expected:
        """Of a request that came at `arrived_ns`, behind the others. Priorities are not looked at."""
        s, now_s, sequence_s = self._stats, time.monotonic(), self._lately.sequence_s
        pace = self._pace or Pace(plan.tariff, plan.max_batch_tokens)
        sequences = sum(other.sequences for other in others)
        waiting = sum(other.waiting_tokens for other in others)
        ahead = Ahead(
            waiting_tokens=max(0, waiting - s.prefilling_tokens),
            running_tokens=s.prefilling_tokens - s.prefilled_tokens, rows=s.running - s.prefilling,
            elapsed_s=now_s - self._ran_s if s.running else 0.0,
            rows_wait_s=sequence_s * max(0, sequences + 1 - plan.max_rows) / plan.max_rows)
        ttft_s = now_s - arrived_ns / 1e9 + pace.first_token_s(prompt_tokens, ahead) + self._lately.flush_s
        return Expected(ttft_s, sequence_s, now_s - self._ran_s > STALE_S)
