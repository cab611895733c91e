"""Text to token ids and back: one class over the `tokenizers` library. Knows no template and no model."""
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from gramme.config import ModelError
from gramme.text.gguf import gguf_tokenizer
from gramme.text.sentencepiece import read_sentencepiece
from gramme.text.source import Metadata, TextSource, read_text
from gramme.text.tekken import read_tekken

MAX_FILE_BYTES = 64 << 20
MAX_VOCAB = 1 << 22  # ids; the largest published vocabularies have 2^18
WHOLE = "tokenizer.huggingface.json"  # GGUF's key for a tokenizer.json
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    def __init__(self, inner: tokenizers.Tokenizer, bos_id: int | None, eos_id: int | None):
        self._inner, self.bos_id, self.eos_id = inner, bos_id, eos_id
        added = inner.get_added_tokens_decoder()
        self.added = {token.content: i for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added_ids = added.keys()
        self.vocab_size = _vocab_size(inner)  # largest id + 1
        steps = _decoder_steps(inner)
        self._alphabet = _byte_alphabet() if any(d.get("type") == "ByteLevel" for d in steps) else None
        # Whether decoding drops the space that SentencePiece puts before the first word.
        self.strips_first_space = any(map(_strips, steps))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return _ids(self._inner, text, add_special_tokens)

    def encode_plain(self, text: str, first: bool = True) -> list[int]:
        """The ids of `text` with every control string in it taken as ordinary characters.

        `first`: the text begins the prompt; some tokenizers put their space before its first word only.
        """
        twin = self._plain if first else self._plain_later
        return _ids(twin, text, False)

    def to_json(self) -> str:
        """The form of tokenizer.json."""
        return self._inner.to_str()

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are no character become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(t) for t in ids if t not in skipped).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def token_str(self, token: int) -> str:
        return self._inner.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text: raw bytes, perhaps part of a character."""
        piece = self.token_str(token)
        if token in self._added_ids:
            return piece.encode()
        if self._alphabet is not None:
            codes = [self._alphabet.get(c) for c in piece]
            return piece.encode() if None in codes else bytes(c for c in codes if c is not None)
        if byte := BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("▁", " ").encode()

    @cached_property
    def longest_token_bytes(self) -> int:
        return max(len(self.token_bytes(t)) for t in range(self.vocab_size))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A twin without added tokens."""
        raw = json.loads(self._inner.to_str())
        raw["added_tokens"], raw["post_processor"] = [], None
        return tokenizers.Tokenizer.from_str(json.dumps(raw))

    @cached_property
    def _plain_later(self) -> tokenizers.Tokenizer:
        """The twin for text that does not begin the prompt."""
        if '"prepend_scheme":"first"' not in self._inner.to_str():
            return self._plain
        raw = json.loads(self._plain.to_str())
        kind = raw["pre_tokenizer"]
        for step in [kind, *kind.get("pretokenizers", [])]:
            if step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
        return tokenizers.Tokenizer.from_str(json.dumps(raw))


def _ids(inner: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """The library holds the interpreter's lock in `encode`, for seconds on megabytes; not so in this call."""
    ids: list[int] = inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return ids


def load_tokenizer(source: TextSource) -> Tokenizer:
    """From a directory's tokenizer.json, tekken.json or tokenizer.model*, with tokenizer_config.json for bos and eos,
    or from a GGUF file's metadata.

    Raises ModelError naming the file or the key.
    """
    return _from_metadata(source) if isinstance(source, Metadata) else _from_directory(source)


def _from_metadata(source: Metadata) -> Tokenizer:
    try:
        if isinstance(whole := source.values.get(WHOLE), str):  # ggml's docs/gguf.md: it goes before the other keys
            ids = (source.values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
            return Tokenizer(tokenizers.Tokenizer.from_str(whole), *ids)
        return Tokenizer(*gguf_tokenizer(source.values, {byte: char for char, byte in _byte_alphabet().items()}))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise ModelError(f"{source.file}: {error!s:.300}") from None


def _from_directory(directory: Path) -> Tokenizer:
    named = (directory / name for name in ("tokenizer.json", "tekken.json"))
    path = next((p for p in (*named, *sorted(directory.glob("tokenizer.model*"))) if p.is_file()), None)
    if path is None:
        raise ModelError(f"{directory} has no tokenizer.json, tekken.json or tokenizer.model; "
                         "without one, use --skip-tokenizer-init and token ids")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ModelError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    inner, names = _read(path)
    names |= _config(directory)
    try:
        return Tokenizer(inner, *(_token_id(inner, names.get(key)) for key in ("bos_token", "eos_token")))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _read(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, and the names that the file itself gives to bos and eos."""
    try:
        if path.name == "tokenizer.json":
            return tokenizers.Tokenizer.from_file(str(path)), {}
        if path.name == "tekken.json":
            alphabet = {byte: char for char, byte in _byte_alphabet().items()}
            return read_tekken(path, alphabet), {"bos_token": "<s>", "eos_token": "</s>"}
        return read_sentencepiece(path)
    except (KeyboardInterrupt, SystemExit, ModelError):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise ModelError(f"{path} cannot be read: {error!s:.120}") from None


def _config(directory: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_text(directory / "tokenizer_config.json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"tokenizer_config.json cannot be read: {error!s:.80}") from None
    return raw if isinstance(raw, dict) else {}


def _token_id(inner: tokenizers.Tokenizer, name: Any) -> int | None:
    content = name.get("content") if isinstance(name, dict) else name
    found: int | None = inner.token_to_id(content) if isinstance(content, str) else None
    return found


def _vocab_size(inner: tokenizers.Tokenizer) -> int:
    ids = inner.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise ModelError("the tokenizer's vocabulary is empty")
    if len(set(ids)) != len(ids):
        raise ModelError(f"the tokenizer's vocabulary gives {len(ids)} tokens only {len(set(ids))} different ids")
    if max(ids) >= MAX_VOCAB:
        raise ModelError(f"the tokenizer's vocabulary has the id {max(ids)}; the most is {MAX_VOCAB - 1}")
    return max(ids) + 1


def _decoder_steps(inner: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    decoder = json.loads(inner.decoder.__getstate__()) if inner.decoder is not None else {}
    return [decoder, *decoder.get("decoders", [])]


def _strips(step: dict[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return step.get("content") == " " and bool(step.get("start"))
    return step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves, the others for 256, 257, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
