"""tokenizer.model, a SentencePiece file (BPE or Unigram), as a `tokenizers` tokenizer.

Reads the few fields of the protobuf that matter (sentencepiece_model.proto; wire format of protobuf.dev). Knows no
configuration file beside it.
"""
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from gramme.config import ModelError
from gramme.text.tekken import bpe_merges

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type; 5 is unused, 6 a byte
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
Piece = tuple[str, float, int]  # text, score, type


class Rules(NamedTuple):
    """What a tokenizer is besides its pieces."""

    kind: int = BPE  # or UNIGRAM
    byte_fallback: bool = True
    unknown: int | None = 0
    bos: str | None = None  # put before every text
    eos: str | None = None  # put after every text
    space_prefix: bool = True
    squeeze_spaces: bool = False
    normalisation: bytes = b""  # a precompiled table of characters


def read_sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer and the names of its bos and eos. Raises ModelError naming the file."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer = dict(_fields(next((v for n, v in fields if n == 2), b"")))
        normalizer = dict(_fields(next((v for n, v in fields if n == 3), b"")))
        if not pieces or len({text for text, _, _ in pieces}) != len(pieces):
            raise ValueError(f"{len(pieces)} pieces, which are none or not all different")
        names = _names(pieces, trainer)
        return build_sentencepiece(pieces, _rules(trainer, normalizer, names.get("bos_token"))), names
    except (OSError, TypeError, ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{path} is no SentencePiece file: {type(error).__name__}: {error!s:.120}") from None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int or 4 or 8 raw bytes or a length-delimited value) of one message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 not in (1, 2, 5):
            raise ValueError(f"wire type {key & 7} at byte {at}")
        size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes where {len(data) - at} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError(f"a number of more than 10 bytes before byte {at}")


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
    return fields.get(1, b"").decode(), score, fields.get(3, NORMAL)


def _names(pieces: list[Piece], trainer: dict[int, Any]) -> dict[str, str]:
    ids = {"bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2)}
    return {name: pieces[i][0] for name, i in ids.items() if i < len(pieces)}  # -1, none, reads as 2^64 - 1


def _rules(trainer: dict[int, Any], normalizer: dict[int, Any], bos: str | None) -> Rules:
    return Rules(
        kind=trainer.get(3, UNIGRAM), byte_fallback=bool(trainer.get(35, 0)), unknown=trainer.get(40, 0), bos=bos,
        space_prefix=bool(normalizer.get(3, 1)), squeeze_spaces=bool(normalizer.get(4, 1)),
        normalisation=normalizer.get(2, b""),
    )


def build_sentencepiece(pieces: list[Piece], rules: Rules) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(_model(pieces, rules))
    tok.normalizer = _normalizer(rules)
    strip = [decoders.Strip(" ", 1, 0)] if rules.space_prefix else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    for kind in (UNKNOWN, CONTROL):
        tok.add_special_tokens([AddedToken(p, special=True, normalized=False) for p, _, k in pieces if k == kind])
    tok.add_tokens([AddedToken(p, special=False, normalized=False) for p, _, k in pieces if k == USER_DEFINED])
    tok.post_processor = surround(tok, rules.bos, rules.eos)
    return tok


def surround(tok: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> Any:
    """What puts bos before a text and eos after it; None for neither."""
    ends = [end for end in (bos, eos) if end is not None]
    parts = [*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])]
    if not ends:
        return None
    return processors.TemplateProcessing(parts, special_tokens=[(end, tok.token_to_id(end)) for end in set(ends)])


def _model(pieces: list[Piece], rules: Rules) -> Any:
    if rules.kind == UNIGRAM:
        scored = [(text, score) for text, score, _ in pieces]
        return models.Unigram(scored, rules.unknown, rules.byte_fallback)
    if rules.kind != BPE:
        raise ValueError(f"model_type {rules.kind}; BPE ({BPE}) and Unigram ({UNIGRAM}) are supported")
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    normal = sorted((p for p in pieces if p[2] == NORMAL), key=lambda p: -p[1])
    texts = [text for text, _, _ in normal]
    merges = bpe_merges(texts, {text: rank for rank, text in enumerate(texts)})
    unknown = None if rules.unknown is None else pieces[rules.unknown][0]
    return models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=rules.byte_fallback)


def _normalizer(rules: Rules) -> Any:
    steps: list[Any] = [normalizers.Precompiled(rules.normalisation)] if rules.normalisation else []
    if rules.squeeze_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if rules.space_prefix else []
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
