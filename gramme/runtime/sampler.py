"""What the host decides about a choice: the random number, the edits of single logits, the mask. The op does the rest.

Knows parameters, grammars and token ids; no logits and no device.
"""
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from gramme.grammar.matcher import Matcher
from gramme.kernels.ops import Edits, Sampling
from gramme.request import SamplingParams

FORBIDDEN = float("inf")  # a penalty that leaves a logit at minus infinity


class Changes(NamedTuple):
    """Of the logits of one row, see `ops.Edits`: each token stands once."""

    tokens: np.ndarray
    bias: np.ndarray
    repetition: np.ndarray
    penalty: np.ndarray


NO_CHANGES = Changes(np.zeros(0, np.int32), *(np.zeros(0, np.float32) for _ in range(3)))


class Chooser:
    """How one sequence chooses: its parameters, and the counts that penalties need, kept up as its tokens grow."""

    def __init__(self, params: SamplingParams, index: int, seed: int, eos_ids: frozenset[int], vocab_size: int,
                 bad_words: Sequence[Sequence[int]] = ()):
        self.params = params
        self.bad_words = [tuple(word) for word in bad_words if word]
        self.min_tokens_ban = eos_ids | frozenset(params.stop_token_ids) if params.min_tokens else frozenset()
        self.fault: Exception | None = None  # of ours, in deciding about this sequence
        self.matcher: Matcher | None = None  # given, once it is compiled, to a request that asks for a form
        self._allowed = _mask(params.allowed_token_ids, vocab_size) if params.allowed_token_ids else None
        self._seed = seed & (1 << 64) - 1
        self._index, self._vocab_size = index, vocab_size
        self._penalised = params.repetition_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)
        self._prompt = np.zeros(0, np.int32)  # its tokens, in their order, each once; and how often each came again
        self._again = np.zeros(0, np.int32)
        self._new: Counter[int] = Counter()  # tokens of the answer that the prompt does not have
        self._counted = 0

    @property
    def needs_history(self) -> bool:
        """Whether the next choice depends on tokens that the host must have seen: such a sequence is not run ahead."""
        return bool(self._penalised or self.bad_words or self.min_tokens_ban or self.params.structured_outputs)

    def draw(self, position: int) -> float:
        """A number in [0, 1) that depends on seed, sample index and position alone, whatever shares the batch."""
        key = b"%d %d %d" % (self._seed, self._index, position)
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") / 2**64

    def edits(self, tokens: Sequence[int], prompt_len: int) -> Changes:
        """For the choice that follows `tokens`. In arrays: thousands of tokens may be penalised in each step."""
        if not (self._penalised or self.bad_words or self.min_tokens_ban or self.params.logit_bias):
            return NO_CHANGES
        self._count(tokens, prompt_len)
        seen = np.concatenate([self._prompt, np.fromiter(self._new, np.int32, len(self._new))])
        times = np.concatenate([self._again, np.fromiter(self._new.values(), np.int32, len(self._new))])
        bias, banned = self.params.logit_bias, self._banned(tokens, prompt_len)
        single = np.array([*bias, *(banned - bias.keys())], np.int32)
        changed = np.concatenate([seen, single[~np.isin(single, seen)]])
        values = np.zeros((3, len(changed)), np.float32)
        values[1] = 1
        values[1, : len(seen)] = self.params.repetition_penalty
        values[2, : len(seen)] = self.params.frequency_penalty * times + self.params.presence_penalty * (times > 0)
        if len(single):
            order = np.argsort(changed)
            places = order[np.searchsorted(changed, single, sorter=order)]
            values[0, places[: len(bias)]] = np.fromiter(bias.values(), np.float32, len(bias))
            forbidden = places[[token in banned for token in single.tolist()]]
            values[:, forbidden] = np.array([[0], [1], [FORBIDDEN]], np.float32)
        return Changes(changed, *values)

    def mask(self, answer: Sequence[int]) -> np.ndarray | None:
        """(ceil(V / 32),) uint32: bits of the tokens that may follow the answer so far. None: all of them may."""
        if self.matcher is None:
            return self._allowed
        bits, words = self.matcher.mask(answer), -(-self._vocab_size // 32)
        grammar = np.zeros(words, np.uint32) if bits is None else np.frombuffer(bits, "<u4", words)
        return grammar if self._allowed is None else grammar & self._allowed

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether the grammar has come to its end: nothing may follow."""
        return self.matcher is not None and self.matcher.ended(answer)

    def _count(self, tokens: Sequence[int], prompt_len: int) -> None:
        if not self._penalised:
            return
        if not self._counted:
            self._prompt = np.unique(np.array(tokens[:prompt_len], np.int32))
            self._again = np.zeros(len(self._prompt), np.int32)
            self._counted = prompt_len
        for token in tokens[self._counted :]:
            i = int(np.searchsorted(self._prompt, token))
            if i < len(self._prompt) and self._prompt[i] == token:
                self._again[i] += 1
            else:
                self._new[token] += 1
        self._counted = len(tokens)

    def _banned(self, tokens: Sequence[int], prompt_len: int) -> set[int]:
        banned = set(self.min_tokens_ban) if len(tokens) - prompt_len < self.params.min_tokens else set()
        for *head, last in self.bad_words:
            if not head or list(tokens[-len(head) :]) == head:
                banned.add(last)
        return banned


def _mask(allowed: Sequence[int], vocab_size: int) -> np.ndarray:
    """(ceil(V / 32),) uint32 with the allowed tokens' bits set."""
    bits = np.zeros(-(-vocab_size // 32) * 32, bool)
    bits[list(allowed)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


class Choice:
    """One row of logits to choose from: who chooses, after which tokens and guesses; or the token to be scored."""

    __slots__ = ("chooser", "draft", "prompt_len", "target", "tokens")

    def __init__(self, chooser: Chooser, tokens: Sequence[int], prompt_len: int, target: int | None = None,
                 draft: Sequence[int] = ()):
        self.chooser, self.tokens, self.prompt_len, self.target, self.draft = chooser, tokens, prompt_len, target, draft

    def mask(self, vocab_size: int) -> np.ndarray | None:
        """A prompt token is scored by allowing no other: the choice is forced, its log-probability is the raw one."""
        if self.target is not None:
            return _mask([self.target], vocab_size)
        mask = self._own(lambda: self.chooser.mask([*self.tokens[self.prompt_len :], *self.draft]), None)
        return mask if self.chooser.fault is None else np.zeros(-(-vocab_size // 32), np.uint32)

    def edits(self) -> Changes:
        if self.target is not None:
            return NO_CHANGES
        made: Changes = self._own(lambda: self.chooser.edits(self.tokens, self.prompt_len), NO_CHANGES)
        return made

    def _own(self, decide: Callable[[], Any], otherwise: Any) -> Any:
        """A fault in deciding about one sequence must not end the step of all: then no token is allowed to that one."""
        try:
            return decide()
        except Exception as error:
            self.chooser.fault = error
            return otherwise


def sampling(choices: Sequence[Choice], positions: Sequence[int], vocab_size: int) -> Sampling:
    """Host arrays for one call of `ops.sample`; row i chooses the token at `positions[i]`."""
    greedy = [c.target is not None or c.chooser.params.greedy for c in choices]
    params = [c.chooser.params for c in choices]
    column = lambda values, dtype: np.fromiter(values, dtype, len(choices))
    return Sampling(
        temperature=column((0 if g else p.temperature for g, p in zip(greedy, params)), np.float32),
        top_p=column((p.top_p for p in params), np.float32),
        min_p=column((p.min_p for p in params), np.float32),
        top_k=column((max(p.top_k, 0) for p in params), np.int32),
        u=column((0 if g else c.chooser.draw(n) for g, c, n in zip(greedy, choices, positions)), np.float64),
        edits=_edits(choices),  # before the masks: a fault in the one is seen in the other
        mask=_masks(choices, vocab_size),
        processed=column((c.target is None and p.logprobs_mode == "processed" for c, p in zip(choices, params)), bool),
        top=max((_top(c) or 0) for c in choices),
        logprobs=any(_top(c) is not None for c in choices),
    )


def _top(c: Choice) -> int | None:
    return c.chooser.params.logprobs if c.target is None else c.chooser.params.prompt_logprobs


def _edits(choices: Sequence[Choice]) -> Edits | None:
    every = [c.edits() for c in choices]
    counts = [len(changes.tokens) for changes in every]
    if not any(counts):
        return None
    rows = np.repeat(np.arange(len(choices), dtype=np.int32), counts)
    return Edits(rows, *(np.concatenate(parts) for parts in zip(*every)))


def _masks(choices: Sequence[Choice], vocab_size: int) -> np.ndarray | None:
    rows = [c.mask(vocab_size) for c in choices]
    if all(row is None for row in rows):
        return None
    every = np.full(-(-vocab_size // 32), 0xFFFFFFFF, np.uint32)
    return np.stack([every if row is None else row for row in rows])
