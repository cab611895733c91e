"""From a batch of rows to the arrays of a step: host integers only, numpy out. Knows no device and no model."""
from dataclasses import dataclass

import numpy as np

from gramme.core.batch import Batch, Row


@dataclass(frozen=True)
class Wanted:
    """One row of logits: the token at `index` of the step predicts position `position` of row `row`'s sequence.

    `target` is the prompt token that stands there, when its log-probability is asked for; None: sample.
    """

    row: int
    index: int
    position: int
    target: int | None = None


@dataclass(frozen=True)
class HostStep:
    """The arrays of `ops.Step` in host memory, and the tokens that only the device knows yet."""

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    pages: np.ndarray
    max_row: int
    max_length: int
    feeds: tuple[tuple[int, int], ...]  # (token index, row of the previous batch that samples it)


def host_step(batch: Batch, page_size: int) -> HostStep:
    """The arrays of a batch, gathered as lists: most steps are a few tokens, for which numpy's many calls take longer,
    most of all when weights have just driven them out of the caches."""
    rows = batch.rows
    tokens, positions, slots, starts = [], [], [], [0]
    for row in rows:
        span, pages = range(row.start, row.start + len(row.tokens)), row.seq.pages
        tokens += row.tokens
        positions += span
        slots += [pages[p // page_size] * page_size + p % page_size for p in span]
        starts.append(len(tokens))
    lengths = [row.start + len(row.tokens) for row in rows]
    table = np.zeros((len(rows), -(-max(lengths) // page_size)), np.int32)
    for b, row in enumerate(rows):
        used = row.seq.pages[: -(-lengths[b] // page_size)]
        table[b, : len(used)] = used
    feeds = tuple((starts[b], row.feed) for b, row in enumerate(rows) if row.feed is not None)
    arrays = (np.array(a, np.int32) for a in (tokens, positions, slots, starts, lengths))
    return HostStep(*arrays, table, max_row=max(len(row.tokens) for row in rows), max_length=max(lengths), feeds=feeds)


def wanted(batch: Batch, starts: np.ndarray, scored: list[bool]) -> list[Wanted]:
    """Which logits a step must compute: those of rows that sample, and of prompts that are to be scored."""
    out = []
    for b, row in enumerate(batch.rows):
        if scored[b]:
            out += _prompt_targets(row, b, int(starts[b]))
        if row.samples:
            n = len(row.tokens)
            out += [Wanted(b, int(starts[b]) + i, row.start + i + 1) for i in range(n - 1 - len(row.draft), n)]
    return out


def _prompt_targets(row: Row, b: int, first: int) -> list[Wanted]:
    end = min(row.start + len(row.tokens), row.seq.prompt_len - 1)
    return [Wanted(b, first + p - row.start, p + 1, row.seq.tokens[p + 1]) for p in range(row.start, end)]
