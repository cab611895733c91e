"""A result as one GGUF file: llama.cpp's names, its row order, the metadata and the tokenizer that it wants.

Keys: github.com/ggml-org/ggml, docs/gguf.md.
"""
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gramme.config import ConfigError, GenerationDefaults, ModelConfig
from gramme.evals.texts import shipped
from gramme.formats.grouped import Grouped, rows
from gramme.formats.write_gguf import write_gguf
from gramme.models.gguf import LAYOUTS
from gramme.models.load import Source, shapes
from gramme.models.names import their_name
from gramme.models.rope import frequencies
from gramme.text.gguf import AT, BYTE, WORDS
from gramme.text.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from gramme.text.source import Metadata
from gramme.text.template import find_template
from gramme.text.tokenizer import WHOLE, Tokenizer, load_tokenizer

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
UNUSED = 5  # a token's type
FILE_TYPES = {4: 2, 8: 7}  # mostly Q4_0, mostly Q8_0


def write_model(path: Path, text: Path, m: ModelConfig, defaults: GenerationDefaults, bits: int, source: Source
                ) -> None:
    """What `check` accepts."""
    arch = ARCHITECTURES[m.family]
    tokenizer = load_tokenizer(text)
    metadata = _model(m, arch, bits) | _sampling(defaults) | tokenizer_metadata(tokenizer, m)
    metadata |= _ends(tokenizer, (*m.eos_token_ids, *defaults.eos_token_ids))
    if (template := find_template(text)) is not None:
        metadata["tokenizer.chat_template"] = template
    layout = LAYOUTS[arch]
    tensors = {their_name(ours, layout): _reader(ours, source, m, layout.interleaved) for ours, _ in shapes(m)}
    if m.rope.kind == "llama3":
        tensors["rope_freqs.weight"] = lambda: _divisors(m)
    write_gguf(path, metadata, tensors)


def check(tokenizer: Tokenizer, m: ModelConfig) -> None:
    """Raises ConfigError for what GGUF cannot say, or its readers would silently get wrong."""
    if len(set(m.windows)) > 1:
        raise ConfigError("GGUF has no windows on some layers only for this architecture; use another format")
    kind = json.loads(tokenizer.to_json())["model"]["type"]
    if kind != "BPE":
        raise ConfigError(f"GGUF is written with BPE tokenizers only, this model has {kind}; use another format")
    _scaling(m, "")


def interleave(a: np.ndarray | Grouped, heads: int) -> np.ndarray | Grouped:
    """(H * Dh, ...) whose rope pairs are rows (i, i + Dh / 2) of a head -> pairs (2i, 2i + 1): llama.cpp's."""
    order = np.arange(a.shape[0]).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
    return rows(a, order) if isinstance(a, Grouped) else a[order]


def tokenizer_metadata(tokenizer: Tokenizer, m: ModelConfig) -> dict[str, Any]:
    """The vocabulary by id, and the rule by which words are cut, found by trying all that GGUF has names for.

    A tokenizer that cuts as none of them goes along whole, as `tokenizer.huggingface.json`.
    """
    raw = json.loads(tokenizer.to_json())
    out = {AT + "tokens": list(_tokens(raw, m.vocab_size)), AT + "token_type": _types(raw, m.vocab_size)}
    for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if i is not None:
            out[f"{AT}{name}_token_id"] = i
    probe = tokenizer.encode("a")
    out[AT + "add_bos_token"] = bool(probe) and probe[0] == tokenizer.bos_id
    out[AT + "add_eos_token"] = bool(probe) and probe[-1] == tokenizer.eos_id
    if raw["model"].get("byte_fallback"):
        out |= {AT + "model": "llama", AT + "scores": _scores(raw, out[AT + "tokens"])}
        rules: list[dict[str, Any]] = [{}, {AT + "add_space_prefix": False}]
    else:
        out |= {AT + "model": "gpt2", AT + "merges": [" ".join(pair) for pair in _merges(raw)]}
        facts = bool(raw["model"].get("ignore_merges")), (raw["normalizer"] or {}).get("type") == "NFC"
        rules = [{AT + "pre": pre} for pre, words in WORDS.items() if (words.whole, words.composed) == facts]
    for rule in rules:
        if _equal(tokenizer, out | rule):
            return out | rule
    return out | {AT + "pre": "default", WHOLE: tokenizer.to_json()}


def _ends(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[str, int]:
    """Keys for the ids that end an answer beside the tokenizer's own: GGUF has room for two, and readers know many."""
    more = [i for i in dict.fromkeys(ids) if i != tokenizer.eos_id]
    keys = ("eot", "eom") if tokenizer.eos_id is not None else ("eos", "eot", "eom")
    return {f"{AT}{key}_token_id": i for key, i in zip(keys, more)}


def _equal(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> bool:
    """On texts that rules differ for: spaces at either end, accents in two characters, words beside control tokens."""
    other = load_tokenizer(Metadata("model.gguf", metadata))
    hard = "It's 12345.67 €, DON'T  you\tthink?\n\n  où l'été naïf… 日本語 x²+y² == `a_b`  \n"
    control = next(iter(tokenizer.added), "")
    texts = (hard, "a", " a", "  a ", "e\u0301te\u0301 ﬁ", f"a{control}a {control} a", *shipped("held-out").values())
    return all(other.encode(t) == tokenizer.encode(t) for t in texts)


def _tokens(raw: Mapping[str, Any], count: int) -> Iterator[str]:
    by_id = {i: token for token, i in raw["model"]["vocab"].items()}
    by_id |= {t["id"]: t["content"] for t in raw["added_tokens"]}
    if max(by_id) >= count:
        raise ConfigError(f"the tokenizer has the id {max(by_id)}, the model {count} ids")
    yield from (by_id.get(i, f"[PAD{i}]") for i in range(count))


def _types(raw: Mapping[str, Any], count: int) -> list[int]:
    kinds = dict.fromkeys(range(count), UNUSED)
    for token, i in raw["model"]["vocab"].items():
        kinds[i] = BYTE if raw["model"].get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token) else (
            UNKNOWN if token == raw["model"].get("unk_token") else NORMAL)
    kinds |= {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in raw["added_tokens"]
              if kinds[t["id"]] != UNKNOWN}
    return list(kinds.values())


def _merges(raw: Mapping[str, Any]) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in raw["model"]["merges"]]


def _scores(raw: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece joins the pair whose union scores highest: what is merged first scores highest."""
    order: dict[str, int] = {}
    for i, (left, right) in enumerate(_merges(raw)):
        order.setdefault(left + right, i + 1)
    return [-float(order.get(token, 0)) for token in tokens]


def _model(m: ModelConfig, arch: str, bits: int) -> dict[str, Any]:
    out = {
        "general.architecture": arch, "general.file_type": FILE_TYPES[bits], "general.quantization_version": 2,
        f"{arch}.block_count": m.layers, f"{arch}.context_length": m.max_positions,
        f"{arch}.embedding_length": m.width, f"{arch}.feed_forward_length": m.ff_width,
        f"{arch}.attention.head_count": m.heads, f"{arch}.attention.head_count_kv": m.kv_heads,
        f"{arch}.attention.key_length": m.head_dim, f"{arch}.attention.value_length": m.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": m.norm_eps, f"{arch}.rope.freq_base": m.rope.theta,
        f"{arch}.rope.dimension_count": m.head_dim, f"{arch}.vocab_size": m.vocab_size,
    }
    if m.window(0):
        out[f"{arch}.attention.sliding_window"] = m.window(0)
    return out | _scaling(m, f"{arch}.rope.scaling.")


def _sampling(d: GenerationDefaults) -> dict[str, Any]:
    named = {"temp": d.temperature, "top_p": d.top_p, "top_k": d.top_k, "min_p": d.min_p,
             "penalty_repeat": d.repetition_penalty}
    return {f"general.sampling.{name}": value for name, value in named.items() if value is not None}


def _scaling(m: ModelConfig, at: str) -> dict[str, Any]:
    if m.rope.kind == "linear":
        return {at + "type": "linear", at + "factor": m.rope.factor}
    if m.rope.kind != "yarn":
        return {}
    if m.rope.mscale or m.rope.attention_factor is not None or not m.rope.truncate:
        raise ConfigError("GGUF has no keys for this model's yarn (mscale, attention_factor, truncate)")
    return {at + "type": "yarn", at + "factor": m.rope.factor,
            at + "original_context_length": m.rope.original_positions, at + "yarn_beta_fast": m.rope.beta_fast,
            at + "yarn_beta_slow": m.rope.beta_slow}


def _divisors(m: ModelConfig) -> np.ndarray:
    """(Dh / 2,): by what llama3's rule divides each frequency."""
    base = m.rope.theta ** -(np.arange(0, m.head_dim, 2, dtype=np.float64) / m.head_dim)
    return (base / frequencies(m.rope, m.head_dim)[0]).astype(np.float32)


def _reader(ours: str, source: Source, m: ModelConfig, interleaved: bool) -> Any:
    def read() -> np.ndarray | Grouped:
        a = source(ours)
        a = a if isinstance(a, Grouped) else a.astype(np.float32)
        heads = {"q": m.heads, "k": m.kv_heads}.get(ours.removesuffix(".bias").rpartition(".")[2])
        return interleave(a, heads) if interleaved and heads and ours.startswith("layers.") else a
    return read
