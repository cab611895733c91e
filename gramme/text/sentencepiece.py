"""tokenizer.model, a SentencePiece file (BPE or Unigram), as a `tokenizers` tokenizer.

Reads the few fields of the protobuf that matter (sentencepiece_model.proto; wire format of protobuf.dev). Knows no
configuration file beside it.
"""
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from gramme.config import ModelError
from gramme.text.tekken import bpe_merges

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type; 5 is unused, 6 a byte
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
Piece = tuple[str, float, int]  # text, score, type


def read_sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer and the names of its bos and eos. Raises ModelError naming the file."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer = dict(_fields(next((v for n, v in fields if n == 2), b"")))
        normalizer = dict(_fields(next((v for n, v in fields if n == 3), b"")))
        if not pieces or len({text for text, _, _ in pieces}) != len(pieces):
            raise ValueError(f"{len(pieces)} pieces, which are none or not all different")
        return _build(pieces, trainer, normalizer), _names(pieces, trainer)
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


def _build(pieces: list[Piece], trainer: dict[int, Any], normalizer: dict[int, Any]) -> tokenizers.Tokenizer:
    tok = tokenizers.Tokenizer(_model(pieces, trainer))
    prefix = bool(normalizer.get(3, 1))
    tok.normalizer = _normalizer(normalizer, prefix)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    for kind in (UNKNOWN, CONTROL):
        tok.add_special_tokens([AddedToken(p, special=True, normalized=False) for p, _, k in pieces if k == kind])
    tok.add_tokens([AddedToken(p, special=False, normalized=False) for p, _, k in pieces if k == USER_DEFINED])
    bos = _names(pieces, trainer).get("bos_token")
    if bos is not None:
        tok.post_processor = processors.TemplateProcessing([bos, "$A"], special_tokens=[(bos, tok.token_to_id(bos))])
    return tok


def _model(pieces: list[Piece], trainer: dict[int, Any]) -> Any:
    unk, kind, fallback = trainer.get(40, 0), trainer.get(3, UNIGRAM), bool(trainer.get(35, 0))
    if kind == UNIGRAM:
        return models.Unigram([(text, score) for text, score, _ in pieces], unk, fallback)
    if kind != BPE:
        raise ValueError(f"model_type {kind}; BPE ({BPE}) and Unigram ({UNIGRAM}) are supported")
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    normal = sorted((p for p in pieces if p[2] == NORMAL), key=lambda p: -p[1])
    texts = [text for text, _, _ in normal]
    merges = bpe_merges(texts, {text: rank for rank, text in enumerate(texts)})
    return models.BPE(vocab=vocab, merges=merges, unk_token=pieces[unk][0], fuse_unk=True, byte_fallback=fallback)


def _normalizer(spec: dict[int, Any], prefix: bool) -> Any:
    steps: list[Any] = [normalizers.Precompiled(spec[2])] if spec.get(2) else []
    if spec.get(4, 1):  # remove_extra_whitespaces
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if prefix else []
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
