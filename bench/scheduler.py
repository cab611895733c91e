"""How long the scheduler needs to plan and commit a step of decode rows. Ends with one JSON line; times in ms.

    python bench/scheduler.py [rows] [prompt tokens]
"""
import json
import sys
import time
from statistics import median

from gramme.core.pages import PagePool
from gramme.core.scheduler import Scheduler
from gramme.core.sequence import Sequence

STEPS, PAGE_SIZE = 200, 16


def timed(call, *args):
    began = time.perf_counter()
    result = call(*args)
    return result, (time.perf_counter() - began) * 1e3


def sampled(batch):
    return [[1] if row.samples else [] for row in batch.rows]


def decoding(rows, prompt_tokens):
    """A scheduler whose sequences have all prefilled prompts that begin alike."""
    pages = 1 + rows * (-(-(prompt_tokens + STEPS) // PAGE_SIZE) + 2)
    scheduler = Scheduler(PagePool(pages, PAGE_SIZE), rows, 8192)
    for i in range(rows):
        prompt = [*range(prompt_tokens - 1), i]
        scheduler.add(Sequence(id=str(i), tokens=prompt, max_tokens=STEPS + 1))
    while any(s.generated == 0 for s in (*scheduler.waiting, *scheduler.running)):
        batch = scheduler.schedule(0.0)
        scheduler.commit(batch, sampled(batch), 0.0)
    return scheduler


def plain(scheduler):
    for _ in range(STEPS // 2):
        batch, plan_ms = timed(scheduler.schedule, 0.0)
        _, commit_ms = timed(scheduler.commit, batch, sampled(batch), 0.0)
        yield plan_ms + commit_ms


def ahead(scheduler):
    last = scheduler.schedule(0.0)
    for _ in range(STEPS // 4):
        batch, plan_ms = timed(scheduler.schedule, 0.0)
        _, commit_ms = timed(scheduler.commit, last, sampled(last), 0.0)
        last = batch
        yield plan_ms + commit_ms


def admission_ms(prompt_tokens):
    """A long prompt, asked again when its pages are known."""
    scheduler = Scheduler(PagePool(2 + 2 * prompt_tokens // PAGE_SIZE, PAGE_SIZE), 4, 1 << 20)
    for _ in range(2):
        scheduler.add(Sequence(id="", tokens=list(range(prompt_tokens)), max_tokens=1))
        batch, plan_ms = timed(scheduler.schedule, 0.0)
        scheduler.commit(batch, sampled(batch), 0.0)
    return plan_ms


def main(rows=64, prompt_tokens=1000):
    scheduler = decoding(rows, prompt_tokens)
    steps, steps_ahead = list(plain(scheduler)), list(ahead(scheduler))
    print(json.dumps({"bench": "scheduler", "rows": rows, "prompt_tokens": prompt_tokens,
                      "step_ms": round(median(steps), 4), "step_max_ms": round(max(steps), 4),
                      "step_ahead_ms": round(median(steps_ahead), 4),
                      "admit_hit_of_16384_tokens_ms": round(admission_ms(16384), 2)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
