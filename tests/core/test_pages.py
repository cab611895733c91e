"""Whatever is taken, held, published and released: nothing leaks, and a known page holds the tokens that it claims."""
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gramme.core import pages
from gramme.core.pages import PagePool, extend_prefixes

PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=12)  # two tokens only, so that prefixes are often equal
ROOTS = st.sampled_from([b"", b"salt"])
COLLIDING = {"all": lambda root, parent, tokens: b"same",
             "without parent": lambda root, parent, tokens: repr((root, tokens)).encode(),
             "none": pages.prefix_key}


class Holder:
    """What a sequence does to the pool, without a scheduler."""

    def __init__(self, pool, root, tokens):
        self.root, self.tokens, self.prefixes = root, tokens, []
        extend_prefixes(self.prefixes, root, tokens, pool.page_size, len(tokens))
        self.matched = pool.match(self.prefixes)
        pool.hold(self.matched)
        self.pages = list(self.matched)

    def missing(self, page_size):
        return -(-len(self.tokens) // page_size) - len(self.pages)


class PoolMachine(RuleBasedStateMachine):
    @initialize(count=st.integers(2, 9), size=st.sampled_from([1, 2, 4]), key=st.sampled_from(sorted(COLLIDING)))
    def start(self, count, size, key):
        self.patch = patch.object(pages, "prefix_key", COLLIDING[key])
        self.patch.start()
        self.pool, self.size = PagePool(count, size), size
        self.holders, self.contents = [], {}

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        self.patch.stop()
        for holder in self.holders:
            self.pool.release(holder.pages)
        self.pool.check_integrity()
        assert self.pool.available == self.pool.size, "pages leaked"

    def held(self):
        return Counter(p for holder in self.holders for p in holder.pages)

    def content(self, holder, i):
        """What a page means: all tokens up to its end, and their namespace."""
        return holder.root, tuple(holder.tokens[: (i + 1) * self.size])

    @rule(root=ROOTS, tokens=PROMPTS)
    def admit(self, root, tokens):
        before = set(self.held())
        holder = Holder(self.pool, root, tokens)
        assert [self.contents.get(p) for p in holder.matched] == [
            self.content(holder, i) for i in range(len(holder.matched))], "a page with other tokens"
        missing = holder.missing(self.size)
        if missing > self.pool.available:
            with pytest.raises(IndexError, match=f"{missing} pages wanted, {self.pool.available} free"):
                self.pool.take(missing)
            self.pool.release(holder.pages)
            return
        new = self.pool.take(missing)
        assert before.isdisjoint(new) and set(holder.matched).isdisjoint(new) and 0 not in new, "an owned page"
        holder.pages += new
        for i in range(len(holder.matched), len(holder.pages)):
            self.contents[holder.pages[i]] = self.content(holder, i)
        self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        for page, prefix in zip(holder.pages, holder.prefixes, strict=False):
            self.pool.publish(page, prefix)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(holder.pages)
        for page in set(holder.pages) - set(self.held()):
            with pytest.raises(ValueError, match="not held"):
                self.pool.release([page])
            with pytest.raises(ValueError, match="not held"):
                self.pool.publish(page, pages.Prefix(None, b"", (), b"another"))

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        held = self.held()
        assert self.pool.used == len(held)
        for page, count in held.items():
            assert self.pool.shared(page) == (count > 1)
        assert self.pool.unowned(held) == 0


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True,
                                         database=None)
TestPool = PoolMachine.TestCase


def filled(pool, tokens, root=b""):
    """Take, write and publish the pages of tokens; as a sequence that has just run."""
    holder = Holder(pool, root, tokens)
    holder.pages += pool.take(holder.missing(pool.page_size))
    for page, prefix in zip(holder.pages, holder.prefixes, strict=False):
        pool.publish(page, prefix)
    return holder


def hits(pool, tokens, root=b""):
    holder = Holder(pool, root, tokens)
    pool.release(holder.pages)
    return len(holder.matched)


def test_a_released_page_stays_known_until_it_is_handed_out_tail_first():
    pool = PagePool(5, 2)
    pool.release(filled(pool, [1, 2, 3, 4, 5, 6, 7, 8]).pages)
    for left in (3, 2, 1, 0):
        pool.take(1)
        assert hits(pool, [1, 2, 3, 4, 5, 6, 7, 8]) == left


def test_what_was_used_last_is_evicted_last():
    pool = PagePool(5, 2)
    old, new = filled(pool, [1, 2, 3, 4]), filled(pool, [5, 6, 7, 8])
    pool.release(new.pages)
    pool.release(old.pages)
    pool.take(2)
    assert (hits(pool, [1, 2, 3, 4]), hits(pool, [5, 6, 7, 8])) == (2, 0)


def test_a_prefix_is_known_in_its_own_namespace_and_after_its_own_parent_only():
    pool = PagePool(9, 2)
    filled(pool, [1, 2, 3, 4])
    assert hits(pool, [1, 2, 3, 4, 5]) == 2
    assert hits(pool, [1, 2, 3, 4], b"salt") == 0
    assert hits(pool, [3, 4]) == 0 and hits(pool, [9, 9, 3, 4]) == 0


def test_the_scratch_page_belongs_to_nobody():
    pool = PagePool(3, 2)
    assert sorted(pool.take(2)) == [1, 2]
    with pytest.raises(ValueError, match="page 0 is not held"):
        pool.release([0])
    with pytest.raises(ValueError, match="scratch"):
        PagePool(1, 16)
