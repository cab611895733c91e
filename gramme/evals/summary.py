"""From scores of single tokens to figures with intervals: perplexity, bits per byte, KL, agreement.

Intervals hold 95 %: a block bootstrap (Künsch 1989) over runs of BLOCK tokens, because neighbours in a text are alike;
figures of two models are resampled together, so what both find hard cancels.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gramme.evals.scores import Scores

BLOCK = 64  # tokens; fewer where a text would have less than MIN_BLOCKS of them
MIN_BLOCKS = 16
DRAWS = 1000


@dataclass(frozen=True)
class Figure:
    value: float
    low: float  # of the 95 % interval
    high: float


@dataclass(frozen=True)
class Quality:
    tokens: int
    perplexity: Figure
    bits_per_byte: Figure


@dataclass(frozen=True)
class Loss:
    """What a model loses against its reference."""

    tokens: int
    perplexity: Figure
    reference_perplexity: Figure
    perplexity_increase: Figure  # 0.04: 4 % above the reference's
    bits_per_byte: Figure
    kl: Figure  # nats, mean over tokens
    kl_p99: Figure  # nats, 99 of 100 tokens have less
    top1_agreement: Figure


def quality(s: Scores) -> Quality:
    mean = _Bootstrap(s.nats, s.nbytes)
    return Quality(len(s.nats), mean.figure(_perplexity), mean.figure(_bits_per_byte))


def loss(s: Scores) -> Loss:
    mean = _Bootstrap(s.nats, s.nbytes, s.reference_nats, s.kl, s.agrees)
    return Loss(
        len(s.nats), mean.figure(_perplexity), mean.figure(lambda t: np.exp(t[2])),
        mean.figure(lambda t: np.exp(t[0] - t[2]) - 1), mean.figure(_bits_per_byte), mean.figure(lambda t: t[3]),
        _tail(s.kl), mean.figure(lambda t: t[4]),
    )


def _perplexity(t: np.ndarray) -> np.ndarray:
    return np.exp(t[0])


def _bits_per_byte(t: np.ndarray) -> np.ndarray:
    return t[0] / t[1] / math.log(2)


class _Bootstrap:
    """Columns of per-token numbers; a figure is a function of their means, columns first."""

    def __init__(self, *columns: np.ndarray):
        table = np.stack(columns)
        starts = np.arange(0, table.shape[1], _block(table.shape[1]))
        sums, counts = np.add.reduceat(table, starts, 1), np.diff([*starts, table.shape[1]])
        picks = _picks(len(starts))
        self.means = table.mean(1)
        self.drawn = sums[:, picks].sum(-1) / counts[picks].sum(-1)  # (columns, DRAWS)

    def figure(self, of: Callable[[np.ndarray], np.ndarray]) -> Figure:
        return _figure(of(self.means), of(self.drawn))


def _tail(values: np.ndarray, quantile: float = 0.99) -> Figure:
    blocks = np.array_split(values, list(range(size := _block(len(values)), len(values), size)))
    drawn = [np.quantile(np.concatenate([blocks[i] for i in row]), quantile) for row in _picks(len(blocks))]
    return _figure(np.quantile(values, quantile), np.array(drawn))


def _block(tokens: int) -> int:
    return max(1, min(BLOCK, tokens // MIN_BLOCKS))


def _picks(blocks: int) -> np.ndarray:
    """(DRAWS, blocks) indices, the same every time: a gate must not depend on luck."""
    return np.random.default_rng(0).integers(0, blocks, (DRAWS, blocks))


def _figure(value: np.ndarray, drawn: np.ndarray) -> Figure:
    return Figure(float(value), *(float(q) for q in np.quantile(drawn, (0.025, 0.975))))
