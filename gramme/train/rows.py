"""Rows of tokens for training: which rows make micro-batch i, and how much each token's loss weighs.

A row is one document, or a piece of one: attention never sees two. A micro-batch is rows of one length, so nothing is
padded. Micro-batch i depends on the seed and i alone, so that a run resumes exactly by its step number.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from gramme.train.dialogues import Dialogue

FEWEST = 8  # rows of one length that are worth a bucket
Batch = tuple[np.ndarray, np.ndarray]  # (B, n + 1) tokens int32, (B, n) loss weights float32


class Kind(Protocol):
    def __len__(self) -> int: ...  # micro-batches of one pass
    def batch(self, i: int) -> Batch: ...  # any i: pass i // len(self), each pass in an order of its own


def chat_tokens(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], int]:
    """The template's form, and how many of the tokens are the question's."""
    head = tokenizer.encode(f"<s>[INST] {question}[/INST]", add_special_tokens=False).ids
    return head + tokenizer.encode(f" {answer}</s>", add_special_tokens=False).ids, len(head)


@dataclass(frozen=True)
class Dialogues:
    """Whole dialogues in buckets of equal length; the answer is learnt with its language's weight, the question with a
    part of it."""

    buckets: Mapping[int, np.ndarray]  # length n -> (rows, n + 2): the tokens, then head, then the weight in 1/1000
    batch_tokens: int
    seed: int
    question_weight: float = 0.0

    @classmethod
    def cut(cls, dialogues: Iterable[Dialogue], tokenizer: Tokenizer, weights: Mapping[str, float], longest: int,
            batch_tokens: int, seed: int) -> "Dialogues":
        found: dict[int, list[list[int]]] = {}
        for question, answer, language in dialogues:
            tokens, head = chat_tokens(tokenizer, question, answer)
            if len(tokens) <= longest:
                found.setdefault(len(tokens), []).append([*tokens, head, round(1000 * weights[language])])
        return cls({n: np.array(rows, np.int32) for n, rows in sorted(found.items()) if len(rows) >= FEWEST},
                   batch_tokens, seed)

    def __len__(self) -> int:
        return sum(self._pieces(n) for n in self.buckets)

    def batch(self, i: int) -> Batch:
        turn, i = divmod(i, len(self))
        i = int(np.random.default_rng((self.seed, turn)).permutation(len(self))[i])
        ends = np.cumsum([self._pieces(n) for n in self.buckets])
        at = int(np.searchsorted(ends, i, "right"))
        n, left = list(self.buckets)[at], int(ends[at]) - i
        order = np.random.default_rng((self.seed, turn, n)).permutation(len(self.buckets[n]))
        picked = self.buckets[n][np.array_split(order, self._pieces(n))[-left]]
        tokens, heads, weights = picked[:, :n], picked[:, n, None], picked[:, n + 1, None].astype(np.float32) / 1000
        return tokens, np.where(np.arange(1, n) < heads, np.float32(self.question_weight) * weights, weights)

    def _pieces(self, n: int) -> int:
        return max(1, round(len(self.buckets[n]) * n / self.batch_tokens))


@dataclass(frozen=True)
class Stream:
    """Pieces of `length` tokens of long texts, from random places; every token is learnt."""

    texts: Sequence[np.ndarray]  # each longer than a piece
    weights: Sequence[float]  # of each text's tokens in the loss
    length: int
    batch_tokens: int
    seed: int

    def __len__(self) -> int:
        return sum(map(len, self.texts)) // self.batch_tokens

    def batch(self, i: int) -> Batch:
        r = np.random.default_rng((self.seed, i))
        sizes = np.array([len(t) - self.length for t in self.texts])
        chosen = r.choice(len(sizes), self.batch_tokens // self.length, p=sizes / sizes.sum())
        rows = [self.texts[t][s : s + self.length + 1] for t, s in ((t, r.integers(sizes[t])) for t in chosen)]
        weights = np.array([self.weights[t] for t in chosen], np.float32)
        return np.stack(rows), np.repeat(weights[:, None], self.length, 1)


class Mix:
    """Micro-batches of several kinds in fixed shares, in a random order that repeats none."""

    CYCLE = 1000  # micro-batches, after which the shares are met exactly

    def __init__(self, kinds: Mapping[str, Kind], shares: Mapping[str, float], seed: int):
        self.kinds, self.seed = kinds, seed
        total = sum(shares.values())
        bounds = np.round(np.cumsum([0.0, *(shares[name] for name in kinds)]) / total * self.CYCLE).astype(int)
        self.counts = dict(zip(kinds, np.diff(bounds).tolist()))

    def __call__(self, i: int) -> Batch:
        cycle, place = divmod(i, self.CYCLE)
        at = int(np.random.default_rng((self.seed, cycle)).permutation(self.CYCLE)[place])
        for name, count in self.counts.items():
            if at < count:
                return self.kinds[name].batch(cycle * count + at)
            at -= count
        raise AssertionError(f"place {place} of a cycle of {self.counts}")


def save(kinds: Mapping[str, Kind], file: Path) -> None:
    """Tokens once cut are kept: a run that goes on starts in seconds."""
    arrays: dict[str, np.ndarray] = {}
    for name, kind in kinds.items():
        if isinstance(kind, Dialogues):
            arrays |= {f"{name}/{n}": rows for n, rows in kind.buckets.items()}
        elif isinstance(kind, Stream):
            arrays |= {f"{name}/text{t:05d}": text for t, text in enumerate(kind.texts)}
            arrays[f"{name}/weights"] = np.array(kind.weights)
    with (new := file.with_suffix(".new")).open("wb") as f:
        np.savez(f, **arrays)
    new.replace(file)


def load(file: Path, length: int, batch_tokens: int, seed: int, question_weight: float) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    with np.load(file, allow_pickle=False) as arrays:
        names = list(dict.fromkeys(key.split("/")[0] for key in arrays.files))
        for name in names:
            mine = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(name + "/")}
            if "weights" in mine:
                weights = mine.pop("weights").tolist()
                kinds[name] = Stream(list(mine.values()), weights, length, batch_tokens, seed)
            else:
                buckets = {int(n): rows for n, rows in mine.items()}
                kinds[name] = Dialogues(buckets, batch_tokens, seed, question_weight)
    return kinds
