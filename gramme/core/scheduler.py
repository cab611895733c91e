"""Decides which rows run next. Plans with integers: knows no tensor, no model, no tokenizer and no clock.

    batch = scheduler.schedule(now_s)                  # may be called once more before the commit: run-ahead
    sampled = run(batch)                               # the only part that needs arrays
    events = scheduler.commit(batch, sampled, now_s)

Pages: a sequence is admitted with the pages of all its tokens, so only decoding grows. When a page is missing, a
sequence later in order gives its pages up and is computed again. What is in flight keeps its pages until its commit.
"""
from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

from gramme.core.batch import Batch, Row
from gramme.core.pages import PagePool, Prefix, extend_prefixes
from gramme.core.sequence import Sequence
from gramme.request import RequestError


class Event(NamedTuple):
    """What a commit brought to a sequence: new tokens, from row `row` of the batch (-1: none), and perhaps its end."""

    seq: Sequence
    tokens: list[int]
    row: int = -1
    finish_reason: str | None = None


def _order(seq: Sequence) -> tuple[int, int]:
    return seq.order


class Scheduler:
    def __init__(self, pool: PagePool, max_rows: int, max_batch_tokens: int, *, prefix_caching: bool = True,
                 propose: Callable[[Sequence], list[int]] | None = None):
        self.pool, self.max_rows, self.max_batch_tokens = pool, max_rows, max_batch_tokens
        self.prefix_caching, self.propose = prefix_caching, propose
        self.waiting: list[Sequence] = []  # by priority, then arrival
        self.running: list[Sequence] = []  # likewise
        self.preemptions = self.prefix_queried_tokens = self.prefix_hit_tokens = 0
        self.prefill_chunks = self.rows_ahead = self.drafted_tokens = self.accepted_tokens = 0
        self._arrivals = 0
        self._closing: list[Sequence] = []  # ended, their Event comes with the next commit
        self._uncommitted: list[Batch] = []
        self._computing: dict[bytes, Sequence] = {}  # key of a prompt's page -> who is computing it

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises RequestError, with the numbers, when the pool can never hold it."""
        size = self.pool.page_size
        need = -(-seq.last_kv // size)
        if need > self.pool.size:
            raise RequestError(f"prompt and answer of {seq.prompt_len} + {seq.max_tokens} tokens need {need} KV pages "
                               f"of {size} tokens, there are {self.pool.size}", "max_tokens")
        seq.order = (seq.priority, self._arrivals)
        self._arrivals += 1
        insort(self.waiting, seq, key=_order)

    def hash_once(self, samples: list[Sequence]) -> None:
        """Of samples of one prompt: its pages are hashed, and their tokens held, for all together."""
        first, *others = samples
        if others and self._shares(first):
            self._hash(first, first.prompt_len)
            for seq in others:
                seq.prefixes = list(first.prefixes)

    def abort(self, seq: Sequence) -> None:
        """End a sequence at the next commit."""
        self.finish(seq, "abort")

    def finish(self, seq: Sequence, reason: str) -> None:
        """End a sequence at the next commit for a reason that only the caller knows, such as a stop string."""
        if seq.finish_reason is None:
            self._end(seq, reason)
            self._closing.append(seq)

    def schedule(self, now_s: float) -> Batch:
        """The next step's rows; perhaps none. At most one batch may be uncommitted."""
        if len(self._uncommitted) > 1:
            raise RuntimeError("two batches are uncommitted already")
        for seq in [s for s in (*self.running, *self.waiting) if s.is_late(now_s)]:
            self.finish(seq, "deadline")
        rows = self._decode_rows()
        budget = self.max_batch_tokens - sum(len(row.tokens) for row in rows)
        budget = self._prefill_rows(rows, budget)
        self._admit(rows, budget, now_s)
        batch = Batch(tuple(rows))
        for row in rows:
            self._launch(row)
        self._uncommitted.append(batch)
        return batch

    def commit(self, batch: Batch, sampled: list[list[int]], now_s: float) -> list[Event]:
        """Take the results of the oldest uncommitted batch.

        sampled[i]: for a row that samples, its accepted drafts and one more token; else []. A negative token says that
        the row's logits were not finite.
        """
        if not self._uncommitted or self._uncommitted[0] is not batch:
            raise RuntimeError("batches are committed once, in the order in which they were planned")
        self._uncommitted.pop(0)
        events = []
        for i, (row, new) in enumerate(zip(batch.rows, sampled, strict=True)):
            row.seq.in_flight -= 1
            if row.seq.finish_reason is None:
                event = self._advance(row, new, i)
                events += [event] if event else []
            if row.seq.leaving and row.seq.in_flight == 0:
                self._let_go(row.seq)
        events += [Event(seq, [], finish_reason=seq.finish_reason) for seq in self._closing]
        self._closing.clear()
        return events

    # Planning

    def _decode_rows(self) -> list[Row]:
        """One token for each sequence that has all its KV, before any prefill: a long prompt must not stall them."""
        rows: list[Row] = []
        budget = self.max_batch_tokens
        feeds = self._feeds()
        for seq in list(self.running):
            if budget and not seq.leaving and seq.known - seq.planned == 1 and self._may_run(seq):
                row = self._decode_row(seq, feeds, budget)
                if self._grow(seq, row.start + len(row.tokens)):
                    rows.append(row)
                    budget -= len(row.tokens)
        return rows

    def _may_run(self, seq: Sequence) -> bool:
        """Whether a step can be planned although a token of it is still being sampled."""
        if not seq.pending:
            return True
        return seq.runs_ahead and self.propose is None and seq.generated + 1 < seq.max_tokens

    def _feeds(self) -> dict[Sequence, int]:
        """Which row of the batch in flight samples each sequence's next token."""
        batch = self._uncommitted[0] if self._uncommitted else Batch(())
        return {row.seq: i for i, row in enumerate(batch.rows) if row.samples}

    def _decode_row(self, seq: Sequence, feeds: dict[Sequence, int], budget: int) -> Row:
        if seq.pending:
            return Row(seq, seq.planned, (0,), samples=True, feed=feeds[seq])
        draft = self._draft(seq, budget - 1) if self.propose else ()
        return Row(seq, seq.planned, (seq.tokens[-1], *draft), samples=not seq.pooling, draft=draft)

    def _draft(self, seq: Sequence, budget: int) -> tuple[int, ...]:
        """Guesses worth making: none beyond the answer's end, none that cost another sequence a page."""
        if seq.pooling or self.propose is None:
            return ()
        held = self.pool.page_size * (len(seq.pages) + self.pool.available)
        room = min(seq.max_tokens - seq.generated - 1, budget, held - len(seq.tokens))
        return tuple(self.propose(seq)[: max(room, 0)])

    def _prefill_rows(self, rows: list[Row], budget: int) -> int:
        planned = {row.seq for row in rows}
        for seq in self.running:
            if budget and not seq.leaving and seq not in planned and seq.known - seq.planned > 1:
                rows.append(self._chunk(seq, budget))
                budget -= len(rows[-1].tokens)
        return budget

    def _chunk(self, seq: Sequence, budget: int) -> Row:
        tokens = tuple(seq.tokens[seq.planned : seq.planned + budget])
        ends = seq.planned + len(tokens) == len(seq.tokens)
        return Row(seq, seq.planned, tokens, samples=ends and not seq.pooling)

    def _admit(self, rows: list[Row], budget: int, now_s: float) -> None:
        i = 0
        while budget and i < len(self.waiting):
            seq = self.waiting[i]
            if seq.held and seq.due:
                i += 1
                continue
            shareable = self._shareable(seq)
            if self._is_being_computed(shareable[-1:]):  # all of it: spares matching its pages in each step
                self._share_chain(seq, len(shareable))
                i += 1
                continue
            matched = self.pool.match(shareable)
            if self._is_being_computed(shareable[len(matched) :]):
                i += 1
                continue
            if seq.held:
                seq.due = self._has_room(seq, matched)
                i += 1
                continue
            if not self._make_room(seq, matched, rows):
                return
            self._start(seq, matched, now_s)
            rows.append(self._chunk(seq, budget))
            budget -= len(rows[-1].tokens)

    def _shares(self, seq: Sequence) -> bool:
        return self.prefix_caching and seq.caches

    def _shareable(self, seq: Sequence) -> list[Prefix]:
        """The pages that another sequence may have computed: never all tokens, one is left to run."""
        if not self._shares(seq):
            return []
        self._hash(seq, len(seq.tokens))
        return seq.prefixes[: (len(seq.tokens) - 1) // self.pool.page_size]

    def _is_being_computed(self, missing: list[Prefix]) -> bool:
        """The next page that it lacks is being computed: waiting is cheaper than computing it twice.

        Only keys are compared: two prefixes with one key cost a wait, never a wrong page.
        """
        return bool(missing) and missing[0].key in self._computing

    def _share_chain(self, seq: Sequence, count: int) -> None:
        """Hold the nodes of whoever computes the same beginning in place of one's own: many may wait for it."""
        theirs = self._computing[seq.prefixes[count - 1].key].prefixes[:count]
        if len(theirs) == count and theirs[-1].same(seq.prefixes[count - 1]):
            seq.prefixes = theirs  # nodes behind them are made again: they would keep its own ones alive

    def _make_room(self, seq: Sequence, matched: list[int], rows: list[Row]) -> bool:
        """Rows and pages for a newcomer; only sequences of lower priority give theirs up for it."""
        while not self._has_room(seq, matched):
            need = self._need(seq, matched)
            lower = [s for s in self.running if s.priority > seq.priority]
            if any(s.leaving for s in self.running):  # rows and pages return at the next commit, no victim is needed
                return False
            if not lower or need > self.pool.available + sum(len(s.pages) for s in lower):
                return False
            victim = self._victim(lower)
            rows[:] = [row for row in rows if row.seq is not victim]
            if not self._preempt(victim):
                return False
        return True

    def _has_room(self, seq: Sequence, matched: list[int]) -> bool:
        """One page for each running sequence stays free, so that admitting does not force a preemption at once."""
        headroom = sum(not s.leaving for s in self.running)
        return len(self.running) < self.max_rows and self._need(seq, matched) + headroom <= self.pool.available

    def _need(self, seq: Sequence, matched: list[int]) -> int:
        """Pages that are free and would not be."""
        return -(-len(seq.tokens) // self.pool.page_size) - len(matched) + self.pool.unowned(matched)

    def _start(self, seq: Sequence, matched: list[int], now_s: float) -> None:
        seq.due = True
        self.waiting.remove(seq)
        insort(self.running, seq, key=_order)
        self.pool.hold(matched)
        if matched:  # continue the chain that is known: chains are then compared by identity, only the tail is hashed
            seq.prefixes = self.pool.known(matched)
        size = self.pool.page_size
        seq.pages = matched + self.pool.take(-(-len(seq.tokens) // size) - len(matched))
        seq.cached = seq.planned = len(matched) * size
        if seq.scheduled_s is None:
            seq.scheduled_s, seq.hit_tokens = now_s, seq.cached
            self.prefix_queried_tokens += seq.prompt_len if self._shares(seq) else 0
            self.prefix_hit_tokens += seq.cached
        for prefix in self._shareable(seq)[len(matched) :]:
            self._computing.setdefault(prefix.key, seq)

    def _launch(self, row: Row) -> None:
        seq = row.seq
        seq.in_flight += 1
        self.rows_ahead += row.feed is not None
        self.prefill_chunks += row.start + len(row.tokens) < len(seq.tokens)
        seq.planned = row.start + len(row.tokens) - len(row.draft)
        seq.pending = 1 if row.samples else 0

    # Pages

    def _grow(self, seq: Sequence, length: int) -> bool:
        """Own pages for `length` tokens, taking them from later sequences if need be. False: not in this step.

        Decode rows are planned in order, so no later sequence has a row yet.
        """
        need = -(-length // self.pool.page_size) - len(seq.pages)
        while need > self.pool.available:
            if any(s.leaving for s in self.running):  # pages return at the next commit, no victim is needed
                return False
            later = [s for s in self.running if s.order > seq.order]
            if not later and seq.in_flight:  # as above: earlier ones may end at the commit
                return False
            if not self._preempt(self._victim(later) if later else seq) or not later:
                return False
        seq.pages += self.pool.take(max(need, 0))
        return True

    def _victim(self, candidates: list[Sequence]) -> Sequence:
        """Lowest priority, then the least to compute again among those that free a page at all, then the newest."""
        def cost(s: Sequence) -> tuple[int, bool, int, int]:
            own = sum(not self.pool.shared(p) for p in s.pages)
            return -s.priority, own == 0, s.planned - (len(s.pages) - own) * self.pool.page_size, -s.order[1]

        return min(candidates, key=cost)

    def _preempt(self, seq: Sequence) -> bool:
        """Back to the queue. False: it is in flight, so its pages come at a commit."""
        self.preemptions += 1
        seq.leaving = True
        if seq.in_flight:
            return False
        self._let_go(seq)
        return True

    def _let_go(self, seq: Sequence) -> None:
        """Take a sequence that is in no batch off its pages; if it has not ended it waits again."""
        self.running.remove(seq)
        self.pool.release(seq.pages)
        self._forget_computing(seq, 0)
        if seq.finish_reason is None:
            seq.had = max(seq.had, seq.cached)
            insort(self.waiting, seq, key=_order)
        seq.pages, seq.cached, seq.planned, seq.pending, seq.leaving = [], 0, 0, 0, False

    def _end(self, seq: Sequence, reason: str) -> None:
        """Mark as ended; pages return now, or at the commit of the batch that still holds a row of it."""
        seq.finish_reason = reason
        if seq in self.waiting:
            self.waiting.remove(seq)
        elif seq.in_flight:
            seq.leaving = True
        else:
            self._let_go(seq)

    # Committing

    def _advance(self, row: Row, new: list[int], index: int) -> Event | None:
        seq = row.seq
        since = seq.cached
        if not row.samples:
            seq.cached = row.start + len(row.tokens)
            self._publish(seq, since)
            if seq.pooling and seq.cached == len(seq.tokens):
                self._end(seq, "stop")
                return Event(seq, [], index, "stop")
            return None
        seq.pending = 0
        new, reason = self._accept(seq, new)
        seq.tokens.extend(new)
        seq.cached = row.start + len(row.tokens) - len(row.draft) + max(len(new) - 1, 0)
        if row.draft:
            seq.planned = seq.cached
            self.drafted_tokens += len(row.draft)
            self.accepted_tokens += max(len(new) - 1, 0)
        elif seq.in_flight:
            seq.pending = 1  # the batch that ran ahead samples one more
        if reason != "error":  # what is not finite must not be found by others
            self._publish(seq, since)
        if reason:
            self._end(seq, reason)
        return Event(seq, new, index, reason)

    def _accept(self, seq: Sequence, new: list[int]) -> tuple[list[int], str | None]:
        """The tokens that count, and why the sequence ends with them, if it does."""
        new = new[: seq.max_tokens - seq.generated]
        for i, token in enumerate(new):
            if token < 0:
                return new[:i], "error"
            if token in seq.stop_ids:
                return new[: i + 1], "stop"
        return new, "length" if seq.generated + len(new) == seq.max_tokens else None

    def _publish(self, seq: Sequence, since: int) -> None:
        """Make the pages known that became full."""
        first, last = since // self.pool.page_size, seq.cached // self.pool.page_size
        if not self.prefix_caching or first == last:
            return
        self._hash(seq, seq.cached)
        for i in range(first, last):
            self.pool.publish(seq.pages[i], seq.prefixes[i])
        self._forget_computing(seq, first, last)

    def _hash(self, seq: Sequence, length: int) -> None:
        extend_prefixes(seq.prefixes, seq.root, seq.tokens, self.pool.page_size, length)

    def _forget_computing(self, seq: Sequence, first: int, last: int | None = None) -> None:
        for prefix in seq.prefixes[first:last]:
            if self._computing.get(prefix.key) is seq:
                del self._computing[prefix.key]
