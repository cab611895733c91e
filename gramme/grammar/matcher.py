"""One answer's way through its grammar: which tokens may come next. Knows token ids; no logits and no scheduler."""
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass
class Meter:
    """What an engine's grammars cost, in seconds of wall-clock time."""

    masks: int = 0
    mask_s: float = 0.0
    compile_s: float = 0.0  # beside the steps of others
    tokenizer_s: float = 0.0  # part of compile_s, once


class Matcher:
    """Follows the tokens that it is shown, forwards and back: after drafts, after a preemption, in any order.

    Fails closed: where the grammar cannot go on, or the tokens are none of its own, no token is allowed and `error`
    says why.
    """

    def __init__(self, inner: "LLMatcher", meter: Meter):
        self._inner, self._meter = inner, meter
        self._followed: list[int] = []
        self.spent_ns = 0  # on its masks

    def mask(self, tokens: Sequence[int]) -> bytes | None:
        """Bits of the tokens that may follow `tokens`, the answer so far: bit t of a little-endian bit string of
        at least ceil(V / 32) words. None: no token may.
        """
        began_ns = time.monotonic_ns()
        bits = self._inner.compute_bitmask() if self._follow(tokens) else None
        took_ns = time.monotonic_ns() - began_ns
        self.spent_ns += took_ns
        self._meter.masks += 1
        self._meter.mask_s += took_ns / 1e9
        return None if self._inner.is_error() else bits

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether `tokens` is a whole answer that nothing but the end may follow."""
        return self._follow(tokens) and self._inner.is_stopped() and not self._inner.is_error()

    @property
    def error(self) -> str | None:
        return self._inner.get_error().partition("\n")[0][:200] or None

    def _follow(self, tokens: Sequence[int]) -> bool:
        """Go to the state after `tokens`; False: the grammar does not allow them."""
        same = _common(self._followed, tokens)
        if same < len(self._followed):
            self._inner.rollback(len(self._followed) - same)
        taken = self._inner.try_consume_tokens(list(tokens[same:]))
        self._followed = list(tokens[: same + taken])
        return same + taken == len(tokens)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of their common beginning; almost always one is the beginning of the other."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):
        return n
    return next(i for i in range(n) if a[i] != b[i])
