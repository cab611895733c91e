"""Compiles grammars for one vocabulary, off the engine's thread, and keeps the last ones. Knows no scheduler.

The first grammar also builds llguidance's view of the vocabulary (a trie of the tokens' bytes), so that a server which
is never asked for a form pays nothing.
"""
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gramme.grammar.matcher import Matcher, Meter
from gramme.grammar.source import PARAM, grammar_text, limits, one_line
from gramme.request import RequestError, StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_KEPT = 64  # compiled grammars; each is some kB to some MB (the limits bound it)
LIMIT_S = 10.0  # of the compiling thread's own time for one grammar: a busy machine refuses nobody; the worst takes 0.6
MAX_TOKEN_BYTES = 64
GUARD = "\x02"  # a character that no token joins with others: text behind it is tokenised as if inside a text


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar must know of a tokenizer. `encode` takes text as ordinary characters."""

    tokens: Sequence[bytes]  # by id; what each adds to the text; as many as there are logits, b"" where none
    special_ids: Sequence[int]  # never part of a text; named in Lark by <name> or <[id]>
    eos_ids: Sequence[int]
    encode: Callable[[str], list[int]]


class Compiled:
    """A grammar on its way. Several sequences and requests share one."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self._spent_s: Callable[[], float] | None = None  # once it has begun
        self._result: Future[LLMatcher] = Future()

    @property
    def ready(self) -> bool:
        """Whether `matcher` can be called; a grammar that takes too long is ready to be refused."""
        return self._result.done() or (self._spent_s is not None and self._spent_s() > LIMIT_S)

    def wait(self, timeout_s: float) -> None:
        wait([self._result], timeout_s)

    def matcher(self) -> Matcher:
        """A matcher at the beginning. Raises RequestError when the grammar cannot be used."""
        if not self._result.done():
            raise RequestError(f"compiling the grammar took longer than {LIMIT_S:g} s", PARAM)
        return Matcher(self._result.result().deep_copy(), self._meter)

    def run(self, build: "Callable[[], LLMatcher]") -> None:
        began_s, self._spent_s = time.monotonic(), _stopwatch()
        try:
            self._result.set_result(build())
        except RequestError as error:
            self._result.set_exception(error)
        except Exception as error:  # of a library that a request must not bring down: who waits must hear of it
            self._result.set_exception(RequestError(f"the grammar cannot be compiled: {error!s:.200}", PARAM))
        self._meter.compile_s += time.monotonic() - began_s


def _stopwatch() -> Callable[[], float]:
    """This thread's CPU seconds from now on, for others to read; the clock's where the system counts none (macOS)."""
    if not hasattr(time, "pthread_getcpuclockid"):
        began_s = time.monotonic()
        return lambda: time.monotonic() - began_s
    clock = time.pthread_getcpuclockid(threading.get_ident())
    began_s = time.clock_gettime(clock)
    return lambda: time.clock_gettime(clock) - began_s


class Grammars:
    """Not thread-safe: one thread asks, one of its own compiles."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]):
        self.meter = Meter()
        self._vocabulary = vocabulary
        self._kept: OrderedDict[StructuredOutputsParams, Compiled] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "grammar")

    def compile(self, asked: StructuredOutputsParams) -> Compiled:
        """At once; the work is done by another thread, once for equal grammars."""
        if asked in self._kept:
            self._kept.move_to_end(asked)
            return self._kept[asked]
        made = self._kept[asked] = Compiled(self.meter)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        self._pool.submit(made.run, lambda: self._build(asked))
        return made

    def _build(self, asked: StructuredOutputsParams) -> "LLMatcher":
        """A matcher at the beginning, its first mask computed once: what allows no beginning is found here."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar_text(asked), log_level=0, limits=limits())
        warnings = matcher.get_grammar_warnings()
        if not matcher.is_error() and not warnings:
            matcher.compute_bitmask()
        if matcher.is_error() or warnings:
            why = warnings[0] if warnings else matcher.get_error()
            empty = why.startswith("NoExtension")
            raise RequestError("the grammar allows no answer" if empty else one_line(why), PARAM)
        return matcher

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        began = time.monotonic()
        v = self._vocabulary()
        made = LLTokenizer(TokenizerWrapper(_View(v)), n_vocab=len(v.tokens), eos_token=list(v.eos_ids))
        self.meter.tokenizer_s = time.monotonic() - began
        return made


class _View:
    """A vocabulary as llguidance's TokenizerWrapper wants it; called, it gives the tokens of a text that is forced."""

    def __init__(self, v: Vocabulary):
        self.tokens, self.special_token_ids = list(v.tokens), list(v.special_ids)
        self.eos_token_id, self.bos_token_id = v.eos_ids[0], None
        self._encode = v.encode

    def __call__(self, text: str) -> list[int]:
        ids = self._encode(GUARD + text)
        ends = next((i for i, t in enumerate(ids) if self.tokens[t].endswith(GUARD.encode())), len(ids))
        inner = ids[ends + 1 :]
        exact = b"".join(self.tokens[t] for t in inner) == text.encode()
        return inner if exact else self._longest(text.encode())

    def _longest(self, text: bytes) -> list[int]:
        """The longest token at each place: for a tokenizer that does not give a text back as it was."""
        ids: list[int] = []
        while text:
            n = next((n for n in range(min(len(text), MAX_TOKEN_BYTES), 0, -1) if text[:n] in self._by_bytes), None)
            if n is None:
                break
            ids.append(self._by_bytes[text[:n]])
            text = text[n:]
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {b: i for i, b in enumerate(self.tokens) if b and i not in special}
