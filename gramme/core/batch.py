"""What one step runs: rows of tokens. Integers only."""
from dataclasses import dataclass
from typing import NamedTuple

from gramme.core.sequence import Sequence


class Row(NamedTuple):
    """Run tokens at positions start, start + 1, ... of a sequence.

    A prefill chunk is a long row, decode a row of one; the last len(draft) tokens are guesses to be verified. With
    `feed` the single token is the one that row `feed` of the previous batch samples; `tokens` then holds a zero.
    """

    seq: Sequence
    start: int
    tokens: tuple[int, ...]
    samples: bool  # whether it reaches the end of the sequence, so that its logits choose the next token
    draft: tuple[int, ...] = ()
    feed: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)
