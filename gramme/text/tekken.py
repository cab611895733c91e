"""tekken.json, Mistral's byte-level BPE file, as a `tokenizers` tokenizer.

The file lists byte strings by rank; special tokens come before them in the ids. The format is the one that
mistral_common's `Tekkenizer` reads. Knows no configuration file beside it.
"""
import base64
import binascii
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from gramme.config import ModelError

MAX_TOKENS = 1 << 20
EARLY_SPECIALS = [  # of the files that list none
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]


def read_tekken(path: Path, alphabet: dict[int, str]) -> tokenizers.Tokenizer:
    """`alphabet` gives the printable stand-in of each byte. Raises ModelError naming the file and the field."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        config = raw["config"]
        size, reserved = config["default_vocab_size"], config["default_num_special_tokens"]
        if not 0 < reserved < size <= MAX_TOKENS or size - reserved > len(raw["vocab"]):
            raise ValueError(f"{len(raw['vocab'])} tokens for default_vocab_size {size} with {reserved} special")
        specials = _specials(raw.get("special_tokens"), reserved)
        pieces = _pieces(raw["vocab"][: size - reserved], alphabet)
        return _build(specials, pieces, str(config["pattern"]))
    except (OSError, KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise ModelError(f"{path} is no tekken file: {type(error).__name__}: {error!s:.120}") from None


def _specials(listed: list[dict[str, Any]] | None, count: int) -> list[str]:
    named = {t["rank"]: t["token_str"] for t in listed} if listed else dict(enumerate(EARLY_SPECIALS))
    if not all(type(rank) is int and 0 <= rank < count for rank in named):
        raise ValueError(f"special_tokens has a rank that is not from 0 to {count - 1}")
    return [named.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)]


def _pieces(vocab: list[dict[str, Any]], alphabet: dict[int, str]) -> list[str]:
    if any(token["rank"] != i for i, token in enumerate(vocab)):
        raise ValueError("vocab is not in the order of its ranks")
    return ["".join(map(alphabet.__getitem__, base64.b64decode(token["token_bytes"]))) for token in vocab]


def _build(specials: list[str], pieces: list[str], pattern: str) -> tokenizers.Tokenizer:
    vocab = {piece: i for i, piece in enumerate([*specials, *pieces])}
    if len(vocab) != len(specials) + len(pieces):
        raise ValueError("vocab and special_tokens name a token twice")
    merges = bpe_merges(pieces, {piece: rank for rank, piece in enumerate(pieces)})
    tok = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    if "<s>" in vocab:
        tok.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tok


def bpe_merges(pieces: list[str], rank: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make each piece of two others; the piece's place in `pieces` is its priority."""
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in rank and piece[i:] in rank]
        merges += sorted(ways, key=lambda way: (rank[way[0]], rank[way[1]]))
    return merges
