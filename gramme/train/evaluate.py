"""Measures a trained model on held-out texts: bits per byte, greedy translations and their chrF.

Knows the decoder and the tokenizer, not the engine: sequences run whole, without a KV cache.
"""
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer

from gramme.models.decoder import Decoder
from gramme.train.data import chat_tokens
from gramme.train.trainer import loss, rows_step

END = 1  # </s>


def bits_per_byte(decoder: Decoder, tokenizer: Tokenizer, text: str, length: int) -> float:
    """Of `text` in pieces of `length` tokens, each predicted without what stands before its piece."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    rows = ids[: len(ids) // length * length].view(-1, length)
    size = len(tokenizer.decode(rows[:, 1:].flatten().tolist()).encode())
    with torch.no_grad():
        nats = loss(decoder, rows, torch.ones(len(rows), length - 1), 2048).item() * len(rows) * (length - 1)
    return nats / math.log(2) / size


def answers(decoder: Decoder, tokenizer: Tokenizer, questions: Sequence[str], most: int) -> list[str]:
    """The greedy answer of at most `most` tokens to each question; questions of one length run together."""
    prompts = [tokens[:head] for tokens, head in (chat_tokens(tokenizer, question, "") for question in questions)]
    out = [""] * len(prompts)
    for picked in _equal_lengths(prompts, 128):
        for i, tokens in zip(picked, _greedy(decoder, torch.tensor([prompts[i] for i in picked]), most), strict=True):
            out[i] = tokenizer.decode(tokens[: tokens.index(END)] if END in tokens else tokens).strip()
    return out


def chrf(answers: Sequence[str], references: Sequence[str], order: int = 6, beta: float = 2) -> float:
    """Corpus chrF2, 0 to 100 (Popović 2015): the mean over n of the F score of character n-grams, spaces left out."""
    scores = []
    for n in range(1, order + 1):
        pairs = [(_grams(a, n), _grams(b, n)) for a, b in zip(answers, references, strict=True)]
        hits = sum((a & b).total() for a, b in pairs)
        made, wanted = (sum(p[i].total() for p in pairs) for i in (0, 1))
        scores.append((1 + beta**2) * hits / (made + beta**2 * wanted) if made and wanted else 0.0)
    return 100 * sum(scores) / order


def _grams(text: str, n: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _equal_lengths(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for group in by_length.values():
        yield from (group[i : i + most] for i in range(0, len(group), most))


@torch.no_grad()
def _greedy(decoder: Decoder, tokens: torch.Tensor, most: int) -> list[list[int]]:
    start, ended = tokens.shape[1], torch.zeros(len(tokens), dtype=torch.bool)
    while tokens.shape[1] < start + most and not ended.all():
        step = rows_step(tokens)
        chosen = decoder.logits(decoder.hidden(step, None), step.starts[1:] - 1).argmax(-1)
        ended |= chosen == END
        tokens = torch.cat([tokens, chosen[:, None]], 1)
    return tokens[:, start:].tolist()
