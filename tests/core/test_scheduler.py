"""Any schedule gives the naive answer.

The core is driven with a fake model whose KV memory is a dict of page slots. What it writes for a token depends on all
tokens before it, as real K and V do, and it reads its context back from the slots: a page handed out twice, published
too early, shared between different prefixes or not rolled back changes the tokens.
"""
import random

import pytest

from gramme.core import pages
from gramme.core.pages import PagePool
from gramme.core.scheduler import Scheduler
from gramme.core.sequence import Sequence
from gramme.request import RequestError

VOCAB, EOS = 50, 0


def naive(prompt, max_tokens, root=b""):
    """What a model without pages, batches and caches would answer."""
    tokens, kv = list(prompt), []
    while len(tokens) < len(prompt) + max_tokens and (tokens[-1] != EOS or len(tokens) == len(prompt)):
        for t in tokens[len(kv):]:
            kv.append(hash((kv[-1] if kv else root, t)))
        tokens.append(hash(tuple(kv)) % VOCAB)
    return tokens[len(prompt):]


class FakeModel:
    def __init__(self, page_size):
        self.page_size, self.memory, self.computed = page_size, {}, 0

    def run(self, batch, previous=None):
        """One step: every row writes its tokens, then every row that samples reads its context from the slots."""
        for row in batch.rows:
            tokens = row.tokens if row.feed is None else (previous[row.feed][-1],)
            assert len(tokens) > len(row.draft), "a row that runs nothing has no logits"
            for p, t in enumerate(tokens, row.start):
                before = self.memory[self._slot(row.seq, p - 1)] if p else row.seq.root
                self.memory[self._slot(row.seq, p)] = hash((before, t))
            self.computed += len(tokens)
        return [self._sample(row) if row.samples else [] for row in batch.rows]

    def _sample(self, row):
        new, n = [], row.start + len(row.tokens) - len(row.draft)
        for guess in [*row.draft, None]:
            kv = tuple(self.memory[self._slot(row.seq, p)] for p in range(n + len(new)))
            new.append(hash(kv) % VOCAB)
            if new[-1] != guess:
                break
        return new

    def _slot(self, seq, p):
        page = seq.pages[p // self.page_size]
        assert page != 0, "the scratch page belongs to nobody"
        return page, p % self.page_size


class Trial:
    """One random configuration, driven to its end."""

    def __init__(self, seed):
        r = self.r = random.Random(seed)
        size, self.rows, self.budget = r.choice([1, 2, 4, 8]), r.randint(1, 6), r.randint(1, 40)
        self.ahead, drafts = r.random() < 0.5, r.choice([0, 0, 1, 3])
        self.seqs = self._sequences()
        biggest = max(-(-(s.prompt_len + s.max_tokens) // size) for s in self.seqs)
        self.pool = PagePool(1 + biggest + r.randint(0, 12), size)
        self.scheduler = Scheduler(self.pool, self.rows, self.budget, prefix_caching=r.random() < 0.8,
                                   propose=(lambda s: self._propose(s, drafts)) if drafts else None)
        self.model, self.output, self.reasons = FakeModel(size), {s: [] for s in self.seqs}, {}

    def _sequences(self):
        r = self.r
        shared = [r.randrange(1, VOCAB) for _ in range(r.randint(0, 20))]
        out = []
        for i in range(r.randint(1, 10)):
            prompt = shared[:r.randint(0, len(shared))] + [r.randrange(1, VOCAB) for _ in range(r.randint(1, 12))]
            if out and r.random() < 0.25:
                prompt = out[-1].tokens  # the same prompt again, as with n > 1
            out.append(Sequence(
                id=str(i), tokens=prompt, max_tokens=r.randint(1, 20), stop_ids=frozenset([EOS]),
                priority=r.choice([0, 0, 0, 1, -1]), root=r.choice([b"", b"", b"salt"]), caches=r.random() < 0.9,
                runs_ahead=r.random() < 0.8, pooling=r.random() < 0.1,
                deadline_s=r.choice([None] * 8 + [r.randint(0, 40)])))
        return out

    def _propose(self, seq, most):  # right for a while, then wrong
        good = naive(seq.tokens, most, seq.root)[:self.r.randint(0, most)]
        return good + [self.r.randrange(VOCAB) for _ in range(most - len(good))]

    def run(self):
        todo, flying, now = list(self.seqs), [], 0
        while todo or flying or self.scheduler.waiting or self.scheduler.running or len(self.reasons) < len(self.seqs):
            while todo and self.r.random() < 0.5:
                self.scheduler.add(todo.pop(0))
            if now < 40 and self.r.random() < 0.02:  # not for ever: an abort would end what is stuck
                victim = self.r.choice(self.seqs)
                if victim not in todo:
                    self.scheduler.abort(victim)
            batch = self.scheduler.schedule(now)
            self._check(batch)
            sampled = self.model.run(batch, flying[-1][1] if flying else None)
            flying.append((batch, sampled))
            while len(flying) > (self.ahead and self.r.random() < 0.8):
                self._commit(*flying.pop(0), now)
            now += 1
            assert now < 3000, "no progress"
        self.check_result()

    def _check(self, batch):
        assert batch.num_tokens <= self.budget and len(batch.rows) <= self.rows
        assert len({row.seq for row in batch.rows}) == len(batch.rows), "a sequence has two rows"
        owners = [p for s in self.scheduler.running for p in s.pages]
        assert all(row.seq in self.scheduler.running for row in batch.rows), "a row of a sequence that does not run"
        assert set(owners).isdisjoint(self.pool._free), "a page is owned and free"

    def _commit(self, batch, sampled, now):
        for e in self.scheduler.commit(batch, sampled, now):
            assert e.seq not in self.reasons, "an event after the end"
            self.output[e.seq] += e.tokens
            if e.finish_reason:
                self.reasons[e.seq] = e.finish_reason
        self.pool.check_integrity()

    def check_result(self):
        assert self.pool.available == self.pool.size, "pages leaked"
        assert not self.scheduler._computing, "somebody is still said to compute a page"
        for s in self.seqs:
            want = [] if s.pooling else naive(s.tokens[:s.prompt_len], s.max_tokens, s.root)
            got = self.output[s]
            if self.reasons[s] in ("abort", "deadline"):
                want = want[:len(got)]
            assert got == want, (s.id, got, want)
            if self.reasons[s] == "length":
                assert len(got) == s.max_tokens


@pytest.mark.parametrize("block", range(8))
def test_any_schedule_gives_the_naive_answer(block):
    for seed in range(block * 200, (block + 1) * 200):
        Trial(seed).run()


def test_any_schedule_gives_the_naive_answer_when_all_hashes_collide(monkeypatch):
    monkeypatch.setattr(pages, "prefix_key", lambda root, parent, tokens: b"same")
    for seed in range(200):
        Trial(seed).run()


def drive(scheduler, model, seqs, steps=10_000):
    """Run to the end without run-ahead; the sequences in the order in which they finished."""
    done = []
    for now in range(steps):
        if not (scheduler.waiting or scheduler.running):
            return done
        batch = scheduler.schedule(now)
        done += [e.seq for e in scheduler.commit(batch, model.run(batch), now) if e.finish_reason]
    raise AssertionError("no progress")


def seq(tokens, max_tokens=5, **more):
    return Sequence(id=str(tokens[:1]), tokens=tokens, max_tokens=max_tokens, **more)


def test_what_can_never_fit_is_refused_with_the_numbers_and_what_fits_exactly_runs():
    scheduler = Scheduler(PagePool(5, 4), 4, 16)
    with pytest.raises(RequestError, match=r"12 \+ 6 tokens need 5 KV pages of 4 tokens, there are 4"):
        scheduler.add(seq([1] * 12, 6))
    scheduler.add(exact := seq([1] * 12, 5))  # 16 positions: the last token's KV is never needed
    assert drive(scheduler, FakeModel(4), [exact]) == [exact]


def test_samples_of_one_prompt_compute_it_once():
    size, prompt = 4, list(range(1, 42))
    scheduler, model = Scheduler(PagePool(100, size), 8, 64), FakeModel(4)
    seqs = [seq(prompt, 1, index=i) for i in range(4)]
    for s in seqs:
        scheduler.add(s)
    drive(scheduler, model, seqs)
    assert model.computed == 41 + 3 * 1  # ten full pages are shared, the last token is run by each


def test_a_long_prompt_does_not_stall_decoding():
    scheduler, model = Scheduler(PagePool(200, 4), 8, 16), FakeModel(4)
    scheduler.add(short := seq([1, 2, 3], 30))
    batch = scheduler.schedule(0)
    scheduler.commit(batch, model.run(batch), 0)
    scheduler.add(seq(list(range(1, 200)), 1, priority=-1))
    for now in range(5):
        batch = scheduler.schedule(now)
        assert any(row.seq is short for row in batch.rows) and len(batch.rows) == 2
        scheduler.commit(batch, model.run(batch), now)


def test_the_oldest_finishes_first_when_pages_are_short():
    scheduler, model = Scheduler(PagePool(13, 2), 8, 64), FakeModel(2)
    seqs = [seq([i + 1, i + 2, i + 3], 20) for i in range(4)]
    for s in seqs:
        scheduler.add(s)
    assert drive(scheduler, model, seqs) == seqs
    assert scheduler.preemptions > 0


def test_a_higher_priority_takes_the_place_of_a_lower_one():
    scheduler, model = Scheduler(PagePool(9, 2), 1, 64), FakeModel(2)
    scheduler.add(low := seq([1, 2, 3], 10, priority=1))
    batch = scheduler.schedule(0)
    scheduler.commit(batch, model.run(batch), 0)
    scheduler.add(high := seq([7, 8, 9], 4))
    assert drive(scheduler, model, [low, high]) == [high, low]


def test_the_queue_is_served_by_priority_then_arrival():
    scheduler, model = Scheduler(PagePool(30, 2), 1, 64), FakeModel(2)
    queue = [seq([i + 1, i + 2], 2, priority=p) for i, p in enumerate([1, 0, 1, -1, 0])]
    for s in queue:
        scheduler.add(s)
    assert drive(scheduler, model, queue) == [queue[i] for i in (3, 1, 4, 0, 2)]


@pytest.mark.parametrize("steps", range(6))
def test_abort_at_any_moment_leaves_the_pool_as_it_was(steps):
    scheduler, model = Scheduler(PagePool(30, 4), 4, 6), FakeModel(4)
    scheduler.add(s := seq(list(range(1, 12)), 10))
    for now in range(steps):
        batch = scheduler.schedule(now)
        scheduler.commit(batch, model.run(batch), now)
    scheduler.abort(s)
    batch = scheduler.schedule(steps)
    events = scheduler.commit(batch, model.run(batch), steps)
    assert [(e.seq, e.finish_reason) for e in events] == [(s, "abort")]
    assert scheduler.pool.available == scheduler.pool.size and not scheduler.running


def test_logits_that_are_not_finite_end_one_sequence_only():
    scheduler, model = Scheduler(PagePool(30, 4), 4, 64), FakeModel(4)
    good, bad = seq([1, 2, 3], 4), seq([4, 5], 4)
    scheduler.add(good)
    scheduler.add(bad)
    batch = scheduler.schedule(0)
    sampled = [[-1] if row.seq is bad else new for row, new in zip(batch.rows, model.run(batch), strict=True)]
    events = scheduler.commit(batch, sampled, 0)
    assert [e.finish_reason for e in events if e.seq is bad] == ["error"]
    assert drive(scheduler, model, [good]) == [good] and list(good.tokens[3:]) == naive([1, 2, 3], 4)


def test_what_is_not_finite_is_not_shared():
    scheduler = Scheduler(PagePool(30, 4), 4, 64)
    scheduler.add(bad := seq(list(range(1, 18))))
    batch = scheduler.schedule(0)
    scheduler.commit(batch, [[-1]], 0)
    scheduler.add(again := seq(bad.tokens))
    assert scheduler.schedule(1).rows[0] == (again, 0, tuple(bad.tokens), True, (), None)


def test_nobody_is_preempted_for_pages_that_are_about_to_return():
    scheduler = Scheduler(PagePool(7, 1), 4, 64)
    for i in range(3):
        scheduler.add(seq([i + 1], 4, stop_ids=frozenset([EOS])))
    first, ahead = scheduler.schedule(0), scheduler.schedule(0)
    assert scheduler.pool.available == 0 and len(ahead.rows) == 3
    scheduler.commit(first, [[7], [7], [EOS]], 0)
    short = scheduler.schedule(1)
    assert not short.rows, "the third has ended, but its pages are in flight"
    scheduler.commit(ahead, [[7], [7], [7]], 1)
    assert scheduler.preemptions == 0 and len(scheduler.schedule(2).rows) == 2


def test_nobody_is_preempted_in_vain():
    scheduler, model = Scheduler(PagePool(13, 2), 8, 64), FakeModel(2)
    scheduler.add(seq([1] * 12, 4))
    scheduler.add(seq([2] * 4, 4, priority=1))
    batch = scheduler.schedule(0)
    scheduler.commit(batch, model.run(batch), 0)
    assert len(batch.rows) == 2
    scheduler.add(seq([3] * 20, 4))
    assert len(scheduler.schedule(1).rows) == 2 and scheduler.preemptions == 0


def test_a_decode_row_comes_before_chunks_and_run_ahead_names_the_row_that_feeds_it():
    scheduler = Scheduler(PagePool(60, 4), 8, 8)
    a, long = seq([1, 2], 9), seq(list(range(1, 30)), 9)
    scheduler.add(long)
    scheduler.add(a)
    first = scheduler.schedule(0)
    assert [(r.seq, r.start, len(r.tokens)) for r in first.rows] == [(long, 0, 8)]
    second = scheduler.schedule(0)
    assert [(r.seq, r.start, len(r.tokens), r.samples) for r in second.rows] == [(long, 8, 8, False)]
    with pytest.raises(RuntimeError, match="uncommitted"):
        scheduler.schedule(0)
    with pytest.raises(RuntimeError, match="order"):
        scheduler.commit(second, [[]], 0)
    scheduler.commit(first, [[]], 0)
    third = scheduler.schedule(0)
    scheduler.commit(second, [[]], 0)
    fourth = scheduler.schedule(0)
    assert [(r.seq, len(r.tokens), r.samples) for r in fourth.rows] == [(long, 5, True), (a, 2, True)]
    scheduler.commit(third, [[]], 0)
    fifth = scheduler.schedule(0)
    assert [(r.seq, r.start, r.tokens, r.feed) for r in fifth.rows] == [(long, 29, (0,), 0), (a, 2, (0,), 1)]


def test_what_needs_its_token_on_the_host_and_what_ends_with_it_are_not_run_ahead():
    scheduler = Scheduler(PagePool(60, 4), 8, 64)
    for s in (seq([1], 9, runs_ahead=False), seq([2], 1), seq([3], 2)):
        scheduler.add(s)
    first = scheduler.schedule(0)
    ahead = scheduler.schedule(0)
    assert [r.seq for r in first.rows][2:] == [r.seq for r in ahead.rows]


def test_a_deadline_and_an_abort_in_the_queue_are_told_at_a_commit_of_nothing():
    scheduler = Scheduler(PagePool(4, 4), 1, 64)
    late, gone = seq([1], deadline_s=5.0), seq([2])
    scheduler.add(late)
    scheduler.add(gone)
    scheduler.abort(gone)
    events = scheduler.commit(batch := scheduler.schedule(5.0), [], 5.0)
    assert not batch.rows and not scheduler.waiting
    assert sorted((e.seq.tokens[0], e.row, e.finish_reason) for e in events) == [(1, -1, "deadline"), (2, -1, "abort")]


def test_a_prefix_hit_leaves_one_token_to_run_and_is_counted():
    scheduler, model = Scheduler(PagePool(30, 4), 4, 64), FakeModel(4)
    prompt = list(range(1, 13))
    for s in (seq(prompt, 1), seq(prompt, 1), seq(prompt, 1, caches=False), seq(prompt, 1, root=b"salt")):
        scheduler.add(s)
        drive(scheduler, model, [s])
    assert model.computed == 12 + 4 + 12 + 12  # of 12 tokens in three full pages, two pages are taken
    assert (scheduler.prefix_hit_tokens, scheduler.prefix_queried_tokens) == (8, 36)


def test_generated_tokens_are_found_too():
    scheduler, model = Scheduler(PagePool(30, 2), 4, 64), FakeModel(2)
    scheduler.add(first := seq([1, 2, 3], 8))
    drive(scheduler, model, [first])
    scheduler.add(turn := seq([*first.tokens, 5], 1))
    assert drive(scheduler, model, [turn]) == [turn] and turn.hit_tokens == 10
