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
    rows = batch.rows
    counts = [len(row.tokens) for row in rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    positions = np.concatenate([np.arange(row.start, row.start + n) for row, n in zip(rows, counts, strict=True)])
    lengths = np.array([row.start + n for row, n in zip(rows, counts, strict=True)])
    pages = np.zeros((len(rows), -(-int(lengths.max()) // page_size)), np.int64)
    for b, row in enumerate(rows):
        used = row.seq.pages[: -(-int(lengths[b]) // page_size)]
        pages[b, : len(used)] = used
    owners = np.repeat(np.arange(len(rows)), counts)
    slots = pages[owners, positions // page_size] * page_size + positions % page_size
    feeds = tuple((int(starts[b]), row.feed) for b, row in enumerate(rows) if row.feed is not None)
    tokens = np.concatenate([row.tokens for row in rows])
    arrays = (a.astype(np.int32) for a in (tokens, positions, slots, starts, lengths, pages))
    return HostStep(*arrays, max_row=max(counts), max_length=int(lengths.max()), feeds=feeds)


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
