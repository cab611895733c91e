"""Each moment since an engine was ready stands in one place, each token that ran in one line of one receipt."""
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from engines import BITWISE, maker, prompts, requests, run

from gramme.llm import engine as engine_module
from gramme.request import Request, SamplingParams, Spent


class Clock:
    """Any time may pass between two looks at it."""

    def __init__(self, r):
        self.r, self.now = r, 10**11

    def monotonic_ns(self):
        self.now += self.r.choice((0, 100_000, self.r.randrange(10**9)))
        return self.now


def seconds(spent):
    return spent.prefill_s, spent.decode_s, spent.recomputed_s, spent.rejected_s


def drive(engine, clock, todo, r, aborts):
    """Requests come and go at random: receipts by (id, index), answers' lengths, and how many tokens were run."""
    receipts, made, ran, launch = {}, {}, [], engine.runner.launch
    engine.runner.launch = lambda batch, *rest: ran.append(batch.num_tokens) or launch(batch, *rest)
    waiting = list(todo)
    for _ in range(3000):
        if waiting and r.random() < 0.5:
            engine.add(waiting.pop(0))
        clock.monotonic_ns()
        if aborts and r.random() < 0.02 and engine._by_id:
            engine.abort(r.choice(list(engine._by_id)))
        for u in engine.step() if engine.busy else []:
            made[u.id, u.index] = made.get((u.id, u.index), 0) + len(u.token_ids)
            if u.finish_reason is not None:
                receipts[u.id, u.index] = u.finish_reason, u.spent
        if not waiting and not engine.busy:
            return receipts, made, sum(ran)
    raise AssertionError("it does not end")


def guesses(answers, r):
    """A drafter that is right most of the time."""
    def propose(seq):
        rest = answers[seq.id, seq.index].tokens[seq.generated :]
        return [t if r.random() < 0.7 else r.randrange(199) for t in rest[: r.randrange(5)]]
    return propose


@pytest.mark.parametrize("seed", range(14))
def test_receipts_add_up_to_the_time_and_the_tokens(seed, monkeypatch):
    r = random.Random(seed)
    make, clock = maker(BITWISE[-1]), Clock(r)
    options = dict(kv_tokens=r.choice((4096, 256, 200)), max_num_batched_tokens=r.choice((32, 48, 512)),
                   run_ahead=r.random() < 0.5, prefix_caching=r.random() < 0.7, power=r.choice((None, "50W")))
    todo = requests(prompts(9, seed, shared=r.choice((0, 24)), longest=50), max_tokens=r.randint(1, 20))
    todo += [replace(todo[0], id="n", params=replace(todo[0].params, n=3)),
             replace(todo[1], id="scored", params=replace(todo[1].params, prompt_logprobs=2)),
             Request(id="pooled", prompt_token_ids=[3] * 40, params=SamplingParams(), pooling="mean")]
    answers = run(make(), todo) if seed % 2 else None
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(
        monotonic_ns=clock.monotonic_ns, process_time=lambda: 0.0))
    engine = make(**options)
    began = engine.meter._ended_s
    if answers is not None:
        engine.scheduler.propose = guesses(answers, r)
    aborts = r.random() < 0.5
    receipts, made, ran = drive(engine, clock, todo, r, aborts)
    stats, total = engine.stats(), engine.stats().spent

    assert stats.spent.seconds + stats.other_s + stats.idle_s == pytest.approx(engine.meter._ended_s - began)
    assert total.joules == pytest.approx(50 * total.seconds if options["power"] else 0.0)
    assert total.prefill_tokens + total.decode_tokens + total.recomputed_tokens + total.rejected_tokens == ran

    given = sum((spent for _, spent in receipts.values()), Spent())
    late = not (options["run_ahead"] or aborts)  # what runs ahead of an end is found out after the receipt was given
    assert given.rejected_s == pytest.approx(total.rejected_s) if late else given.rejected_s <= total.rejected_s + 1e-9
    assert seconds(given)[:3] == pytest.approx(seconds(total)[:3]) and given.cached_tokens == total.cached_tokens

    for request in todo:
        for index in range(request.params.n):
            reason, spent = receipts[request.id, index]
            fresh = spent.prefill_tokens + spent.cached_tokens
            if reason != "abort":
                assert fresh == len(request.prompt_token_ids) or (stats.preemptions and fresh <= 60)
                assert spent.decode_tokens == max(made[request.id, index] - 1, 0)
    assert (total.recomputed_tokens > 0) <= (stats.preemptions > 0)
    assert answers is None or options["run_ahead"] or stats.accepted_tokens > 0


def test_the_schedules_above_preempt_draft_and_find_prefixes(monkeypatch):
    """What was not seen was not tested."""
    make, todo = maker(BITWISE[-1]), requests(prompts(12, shared=24), max_tokens=20)
    tight = make(kv_tokens=200)
    answers = run(tight, todo)
    spent = tight.stats().spent
    assert spent.recomputed_tokens > 0 and spent.cached_tokens > 0 and spent.rejected_tokens == 0
    assert spent.cached_tokens == tight.stats().prefix_hit_tokens
    drafting = make()
    drafting.scheduler.propose = guesses(answers, random.Random(0))
    run(drafting, todo)
    stats = drafting.stats()
    assert stats.spent.rejected_tokens == stats.drafted_tokens - stats.accepted_tokens > 0
    ahead = make(run_ahead=True)
    run(ahead, requests(prompts(6), max_tokens=20, stop_token_ids=list(range(0, 199, 5))))
    assert ahead.stats().spent.rejected_tokens > 0, "a row that ran ahead of an end is nobody's answer"
