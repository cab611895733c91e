"""The tokenizer that stands in a GGUF file's metadata. Knows no file: it is given the mapping.

Keys: github.com/ggml-org/ggml, docs/gguf.md. Two kinds: "llama", SentencePiece pieces with scores, and "gpt2",
byte-level BPE with merges, whose words are cut by the patterns that `tokenizer.ggml.pre` names.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from gramme.config import ModelError
from gramme.text.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Rules, build_sentencepiece, surround

AT = "tokenizer.ggml."
BYTE = 6  # a token's type; the others are SentencePiece's
TEXT_BYTES = frozenset(range(256)) - {0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}  # of the characters there are

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+END|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*END|DIGITS|"
          rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}")
_TEKKEN = _CASED.replace("END", "").replace("DIGITS", r"\p{N}")
_GPT4O = _CASED.replace("END", _CONTRACTIONS + "?").replace("DIGITS", r"\p{N}{1,3}")


class Words(NamedTuple):
    """How a text is cut before merging: by each pattern in turn, every match a word."""

    patterns: tuple[str, ...]
    composed: bool = False  # to Unicode's NFC first
    whole: bool = False  # a word that is a token is taken whole, without merging
    bos: bool = False  # whether bos comes first where the file does not say


_DIGITS_FIRST = Words((r"\p{N}", _GPT2))
WORDS = {
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": Words((_GPT2,)), "olmo": Words((_GPT2,)), "mpt": Words((_GPT2,)), "phi-2": Words((_GPT2,)),
    "llama-bpe": Words((_LLAMA3,), whole=True, bos=True), "llama3": Words((_LLAMA3,), whole=True, bos=True),
    "llama-v3": Words((_LLAMA3,), whole=True, bos=True), "falcon3": Words((_LLAMA3,), whole=True, bos=True),
    "pixtral": Words((_LLAMA3,), whole=True, bos=True),
    "smaug-bpe": Words((_LLAMA3,)), "dbrx": Words((_LLAMA3,)),
    "qwen2": Words((_QWEN2,), composed=True), "deepseek-r1-qwen": Words((_QWEN2,), composed=True),
    "stablelm2": Words((_QWEN2,)), "megrez": Words((_QWEN2,)),
    "tekken": Words((_TEKKEN,), whole=True, bos=True), "gpt-4o": Words((_GPT4O,)), "llama4": Words((_GPT4O,)),
    "starcoder": _DIGITS_FIRST, "refact": _DIGITS_FIRST, "command-r": _DIGITS_FIRST, "smollm": _DIGITS_FIRST,
    "codeshell": _DIGITS_FIRST, "exaone": _DIGITS_FIRST, "minerva-7b": _DIGITS_FIRST,
    "falcon": Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
}


def gguf_tokenizer(metadata: Mapping[str, Any],
                   alphabet: Mapping[int, str]) -> tuple[tokenizers.Tokenizer, int | None, int | None]:
    """(tokenizer, bos, eos). `alphabet` gives the printable stand-in of each byte. Raises ModelError naming the key."""
    kind = metadata.get(AT + "model")
    if kind not in ("llama", "gpt2"):
        raise ModelError(f"{AT}model {kind!r:.40} is not supported; llama and gpt2 are")
    tokens, types = _tokens(metadata), _types(metadata)
    ids = {name: _id(metadata, name, len(tokens)) for name in ("bos", "eos", "unknown")}
    if kind == "llama":
        tok = _sentencepiece(metadata, tokens, types, ids)
    else:
        tok = _byte_level(metadata, tokens, types, ids, alphabet)
    return tok, ids["bos"], ids["eos"]


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(AT + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{AT}tokens must be a list of strings")
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        first, second = next((seen[t], i) for i, t in enumerate(tokens) if seen.setdefault(t, i) != i)
        raise ModelError(f"{AT}tokens: {tokens[first]!r:.60} is token {first} and {second}")
    return tokens


def _types(metadata: Mapping[str, Any]) -> list[int]:
    count = len(metadata[AT + "tokens"])
    types = metadata.get(AT + "token_type")
    values = [NORMAL] * count if types is None else [int(t) for t in types]
    if len(values) != count:
        raise ModelError(f"{AT}token_type has {len(values)} entries for {count} tokens")
    if bad := [t for t in values if not NORMAL <= t <= BYTE]:
        raise ModelError(f"{AT}token_type has the type {bad[0]}; types are 1 to 6")
    return values


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    key = f"{AT}{name}_token_id"
    value = metadata.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise ModelError(f"{key} must be from 0 to {count - 1}, not {value!r:.40}")
    return value


def _ends(metadata: Mapping[str, Any], tokens: Sequence[str], ids: Mapping[str, int | None],
          bos: bool) -> list[str | None]:
    """What is put before and after every text."""
    out: list[str | None] = []
    for name, default in (("bos", bos), ("eos", False)):
        wanted = _flag(metadata, f"add_{name}_token", default)
        i = ids[name]
        if wanted and i is None:
            raise ModelError(f"{AT}add_{name}_token asks for a token that {AT}{name}_token_id does not name")
        out.append(tokens[i] if wanted and i is not None else None)
    return out


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(AT + name, default)
    if type(value) is not bool:
        raise ModelError(f"{AT}{name} must be true or false, not {value!r:.40}")
    return value


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int],
                   ids: Mapping[str, int | None]) -> tokenizers.Tokenizer:
    scores = metadata.get(AT + "scores")
    values = [] if scores is None else [float(s) for s in scores]
    if len(values) != len(tokens) or not all(map(math.isfinite, values)):
        raise ModelError(f"{AT}scores must be {len(tokens)} finite numbers, one for each token")
    has_bytes = _check_bytes(tokens, types)
    unknown = ids["unknown"] if ids["unknown"] is not None else types.index(UNKNOWN) if UNKNOWN in types else None
    if not has_bytes and unknown is None:
        raise ModelError(f"{AT}tokens has neither byte tokens nor an unknown one: there is text that it cannot encode")
    bos, eos = _ends(metadata, tokens, ids, bos=ids["bos"] is not None)
    rules = Rules(byte_fallback=has_bytes, unknown=unknown, bos=bos, eos=eos,
                  space_prefix=_flag(metadata, "add_space_prefix", True),
                  squeeze_spaces=_flag(metadata, "remove_extra_whitespaces", False))
    return build_sentencepiece(list(zip(tokens, values, types, strict=True)), rules)


def _check_bytes(tokens: list[str], types: list[int]) -> bool:
    """Whether there are byte tokens: all 256 of them or none."""
    found = {t for t, kind in zip(tokens, types, strict=True) if kind == BYTE}
    if not found:
        return False
    wanted = {f"<0x{b:02X}>" for b in range(256)}
    if bad := sorted(found ^ wanted):
        what = "is no byte token" if bad[0] in found else "is missing among the byte tokens"
        raise ModelError(f"{AT}tokens: {bad[0]!r:.40} {what}")
    return True


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, int | None],
                alphabet: Mapping[int, str]) -> tokenizers.Tokenizer:
    pre = metadata.get(AT + "pre", "default")  # files from before April 2024 do not say
    words = WORDS.get(pre) if isinstance(pre, str) else None
    if words is None:
        raise ModelError(f"{AT}pre {pre!r:.60} is not supported; there are: {', '.join(WORDS)}")
    vocab = {t: i for i, t in enumerate(tokens)}
    if missing := sorted(b for b in TEXT_BYTES if alphabet[b] not in vocab):
        raise ModelError(f"{AT}tokens: there is no token for byte {missing[0]} and {len(missing) - 1} others")
    tok = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=_merges(metadata, vocab), ignore_merges=words.whole))
    if words.composed:
        tok.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in words.patterns]
    tok.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, types, strict=True))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in kinds if kind == CONTROL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t, kind in kinds if kind == USER_DEFINED])
    tok.post_processor = surround(tok, *_ends(metadata, tokens, ids, words.bos and ids["bos"] is not None))
    return tok


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    listed = metadata.get(AT + "merges")
    if not isinstance(listed, list):
        raise ModelError(f"{AT}merges must be a list of strings")
    merges = []
    for i, merge in enumerate(listed):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelError(f"{AT}merges[{i}] {merge!r:.60} joins or makes a token that {AT}tokens does not have")
        merges.append((left, right))
    return merges
