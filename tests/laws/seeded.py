"""Mistakes that are easy to make here, each with the test that must fail when it is made.

A seeded bug is a function that plants it with pytest's monkeypatch. `test_seeded.py` plants each and runs its test.
"""
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gramme.core import pages
from gramme.core.pages import PagePool, Prefix
from gramme.core.scheduler import Scheduler
from gramme.kernels import load, reference
from gramme.llm import assembly, engine
from gramme.quant.weights import Dense
from gramme.runtime import runner
from gramme.runtime.runner import Launched
from gramme.runtime.sampler import Chooser
from gramme.text import chat, detokenizer

LAWS, PAPER = "tests/laws/test_laws.py::", "tests/laws/test_paper.py::"
DECODE_IS_PREFILL = LAWS + "test_decoding_says_what_prefilling_says"
DISTRIBUTION = "tests/runtime/test_sampler.py::test_every_steps_distribution_is_the_one_by_the_book"
FORMULAS = PAPER + "test_prompt_and_decoded_tokens_have_the_probabilities_of_the_formulas"


class Bug(NamedTuple):
    what: str
    caught_by: str  # a test's node id
    plant: Callable  # monkeypatch -> None


STAMPS = "tests/llm/test_stamps.py::"
BUGS = []


def bug(what, caught_by):
    return lambda plant: BUGS.append(Bug(what, caught_by, plant))


def around(owner, name, monkeypatch, change):
    """Replace owner.name by change(the original)."""
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))


@bug("the last page of a row is another one", DECODE_IS_PREFILL)
def wrong_page(monkeypatch):
    def change(host_step):
        def shifted(batch, page_size):
            step = host_step(batch, page_size)
            step.pages[:, -1] = step.pages[:, 0]
            return step
        return shifted

    around(runner, "host_step", monkeypatch, change)


@bug("KV of a preempted sequence is taken as still valid", LAWS + "test_preempted_as_undisturbed")
def stale_kv_after_preemption(monkeypatch):
    def change(start):
        def started(self, seq, matched, now_s):
            start(self, seq, matched, now_s)
            if seq.generated:
                seq.cached = seq.planned = len(seq.tokens) - 1
        return started

    around(Scheduler, "_start", monkeypatch, change)


@bug("a page's hash does not contain its parent, and contents are not compared", LAWS + "test_prefix_hit_as_miss")
def hash_without_parent(monkeypatch):
    monkeypatch.setattr(Prefix, "extends", lambda self, parent, other: self.tokens == other.tokens)
    around(pages, "prefix_key", monkeypatch, lambda key: lambda root, parent, tokens: key(root, b"", tokens))


@bug("a salt is not part of a prefix", LAWS + "test_equal_prompts_with_other_salts_share_nothing")
def salt_ignored(monkeypatch):
    around(engine, "Sequence", monkeypatch, lambda make: lambda root, **fields: make(root=b"", **fields))


@bug("decoded tokens stand one position too far", DECODE_IS_PREFILL)
def position_off_by_one(monkeypatch):
    def change(host_step):
        def shifted(batch, page_size):
            step = host_step(batch, page_size)
            step.positions[step.starts[:-1][np.diff(step.starts) == 1]] += 1
            return step
        return shifted

    around(runner, "host_step", monkeypatch, change)


@bug("the bias of a matrix is lost", FORMULAS)
def lost_bias(monkeypatch):
    monkeypatch.setattr(Dense, "matmul", lambda self, x: self.ops.matmul(x, self.packed, None))


@bug("the last, partly filled page of a context is dropped", FORMULAS)
def dropped_last_page(monkeypatch):
    def change(context):
        def cut(kv, table, length):
            size = kv.k.shape[2]
            return context(kv, table, max(length // size * size, min(length, size)))
        return cut

    around(reference, "_context", monkeypatch, change)


@bug("rope turns neighbours (2i, 2i + 1) instead of halves", FORMULAS)
def rope_on_the_wrong_half(monkeypatch):
    def interleaved(x, table, positions):
        cos, sin = np.split(table[positions][:, None, :], 2, -1)
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    monkeypatch.setattr(load, "REFERENCE", replace(load.REFERENCE, rope=interleaved))


@bug("a window sees one token more", FORMULAS)
def window_off_by_one(monkeypatch):
    around(reference, "_attend_row", monkeypatch, lambda attend: lambda q, k, v, positions, window: attend(
        q, k, v, positions, window and window + 1))


@bug("a step that runs ahead is fed by another row", LAWS + "test_run_ahead_as_not")
def wrong_feed_row(monkeypatch):
    around(Launched, "sample_place", monkeypatch, lambda place: lambda self, row: place(
        self, next(i for i, r in enumerate(self.batch.rows) if r.samples)))


@bug("draws do not depend on the sample's index",
     LAWS + "test_samples_of_one_prompt_as_separate_requests_share_its_pages")
def seed_ignores_index(monkeypatch):
    def change(init):
        def without(self, *args, **more):
            init(self, *args, **more)
            self._index = 0
        return without

    around(Chooser, "__init__", monkeypatch, change)


@bug("tokens are counted again at every step", DISTRIBUTION)
def penalty_counted_twice(monkeypatch):
    def count(self, tokens, prompt_len):
        self._prompt.update(tokens[:prompt_len])
        self._output.update(tokens[prompt_len:])

    monkeypatch.setattr(Chooser, "_count", count)


@bug("min_tokens forbids the end one step too long", DISTRIBUTION)
def min_tokens_off_by_one(monkeypatch):
    around(Chooser, "_banned", monkeypatch, lambda banned: lambda self, tokens, prompt_len: banned(
        self, tokens, prompt_len + 1))


@bug("pages are released head first",
     "tests/core/test_pages.py::test_a_released_page_stays_known_until_it_is_handed_out_tail_first")
def release_order(monkeypatch):
    around(PagePool, "release", monkeypatch, lambda release: lambda self, held: release(self, held[::-1]))


@bug("a page is handed out although somebody holds it",
     "tests/core/test_scheduler.py::test_any_schedule_gives_the_naive_answer")
def evicted_while_held(monkeypatch):
    def hold(self, held):
        for p in held:
            self._refs[p] += 1

    monkeypatch.setattr(PagePool, "hold", hold)


@bug("an aborted sequence in flight keeps its pages",
     LAWS + "test_abort_leaves_the_pool_as_it_was_and_the_others_alone")
def abort_leaks(monkeypatch):
    def end(self, seq, reason):
        seq.finish_reason = reason
        if seq in self.waiting:
            self.waiting.remove(seq)
        elif not seq.in_flight or reason == "abort":
            self.running.remove(seq)

    monkeypatch.setattr(Scheduler, "_end", end)


@bug("a chunk that does not end its prompt chooses a token", LAWS + "test_chunked_as_whole")
def chunk_samples(monkeypatch):
    around(Scheduler, "_chunk", monkeypatch, lambda chunk: lambda self, seq, budget: chunk(self, seq, budget)._replace(
        samples=not seq.pooling))


@bug("a prompt that is scored takes a prefix hit",
     LAWS + "test_what_needs_the_prompts_logits_or_states_takes_no_prefix_hit")
def scored_prompt_takes_a_hit(monkeypatch):
    monkeypatch.setattr(Scheduler, "_shares", lambda self, seq: self.prefix_caching)


@bug("top_p keeps one token too few", "tests/kernels/test_sample.py::test_samples_follow_the_plain_distribution")
def top_p_too_tight(monkeypatch):
    around(reference, "_draw", monkeypatch, lambda draw: lambda x, top_p, *rest: draw(x, top_p * 0.9, *rest))


@bug("the last group of an integer weight is dropped",
     "tests/quant/test_rounding.py::test_the_product_is_that_of_the_unpacked_weight")
def dropped_last_group(monkeypatch):
    def change(product):
        def cut(x, w):
            group = x.values.shape[1] // x.scales.shape[1]
            codes = np.where(np.arange(w.codes.shape[1]) < w.codes.shape[1] - group, w.codes, 0)
            return product(x, w._replace(codes=codes))
        return cut

    around(reference, "_integer_matmul", monkeypatch, change)


@bug("what may become a stop string is not held back", "tests/text/test_detokenizer.py::test_stops")
def nothing_held_back(monkeypatch):
    monkeypatch.setattr(detokenizer, "_overlap", lambda text, stop: 0)


@bug("control strings in a message become control tokens",
     "tests/text/test_chat.py::test_no_control_token_from_a_message")
def control_strings_pass(monkeypatch):
    monkeypatch.setattr(chat, "_mark", lambda value, control: value)


@bug("the wait for a grammar counts as queueing",
     STAMPS + "test_a_grammar_costs_what_is_waited_for_it_beyond_the_queue")
def grammar_in_the_queue(monkeypatch):
    around(Scheduler, "_has_room", monkeypatch,
           lambda has: lambda self, seq, matched: not seq.held and has(self, seq, matched))


@bug("the queue counts as a wait for the grammar",
     STAMPS + "test_a_grammar_costs_what_is_waited_for_it_beyond_the_queue")
def queue_in_the_grammar(monkeypatch):
    around(Scheduler, "_has_room", monkeypatch,
           lambda has: lambda self, seq, matched: seq.held or has(self, seq, matched))


@bug("a later sample's way replaces that of the first", STAMPS + "test_stamps_are_in_order_in_every_kind_of_request")
def last_sample_counts(monkeypatch):
    def change(stamp):
        def forgetful(self, update):
            if update.stamps is not None:
                self.metrics = replace(self.metrics, stamps=replace(update.stamps, sampled_ns=0))
            stamp(self, update)
        return forgetful

    around(assembly.Assembly, "_stamp", monkeypatch, change)
