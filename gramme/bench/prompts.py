"""Prompts of an exact number of tokens for a server whose tokenizer is not known: words that cost one token each.

Whoever can count the tokens of a text is enough: the server's own `usage`, or a tokenizer. Each prompt is one word that
all share and others in random order, so that no prefix cache has seen it.
"""
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gramme.config import ConfigError

Count = Callable[[str], Awaitable[int]]  # tokens of a text as the server would run it, what it adds itself included

FIRST = "the"  # without a space before it a word may cost something else, so the first is always the same
CANDIDATES = """
of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about
into than them can only other new some could
"""  # the most frequent in English
GROUP = 21  # of them are asked about at once: a small context must hold them
LEAST_WORDS = 12
PROOF = (7, 20)  # words in the texts by which the rule is proved


@dataclass(frozen=True, slots=True)
class Words:
    """A text of FIRST and k - 1 of these words, with spaces between them, has `base` + k tokens."""

    base: int
    words: tuple[str, ...]

    def prompt(self, tokens: int, seed: str) -> str:
        """A text of `tokens` tokens; one word where `base` leaves no room for any."""
        return " ".join((FIRST, *random.Random(seed).choices(self.words, k=max(0, tokens - self.base - 1))))


async def learn(count: Count) -> Words:
    """Words that cost one token each. Raises ConfigError when a tokenizer has too few of them."""
    base = await count(FIRST) - 1
    all_words = CANDIDATES.split()
    groups = [all_words[i : i + GROUP] for i in range(0, len(all_words), GROUP)]
    found = Words(base, tuple([word for group in groups for word in await _single(group, base, count)]))
    if len(found.words) < LEAST_WORDS:
        raise ConfigError(f"only {len(found.words)} common English words are one token each for this model: "
                          "prompts of an exact number of tokens cannot be made")
    for words in PROOF:
        tokens = words + base
        if (counted := await count(found.prompt(tokens, f"proof {words}"))) != tokens:
            raise ConfigError(f"a text of {words} words should have {tokens} tokens for this model and has {counted}: "
                              "prompts of an exact number of tokens cannot be made")
    return found


async def _single(group: list[str], base: int, count: Count) -> list[str]:
    """The words of a group that are one token each: all when the sum is right, else each half is looked at."""
    if await count(" ".join((FIRST, *group))) == base + 1 + len(group):
        return group
    if len(group) == 1:
        return []
    half = len(group) // 2
    return [*await _single(group[:half], base, count), *await _single(group[half:], base, count)]
