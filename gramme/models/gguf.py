"""What a GGUF file's metadata says of its model: a ModelConfig, the layout of its names, sampling defaults.

Keys: github.com/ggml-org/ggml, docs/gguf.md. Knows no tokenizer.
"""
import math
from typing import Any

import numpy as np

from gramme.config import GenerationDefaults, ModelConfig, ModelError, Rope
from gramme.formats.fields import Fields
from gramme.formats.gguf import GGUFFile
from gramme.models.names import GGUF, GGUF_LLAMA, Layout

LAYOUTS = {"llama": GGUF_LLAMA, "qwen2": GGUF, "qwen3": GGUF}  # by general.architecture; llama is Mistral 7B's too
ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|eot|>")
CONTROL = 3  # of tokenizer.ggml.token_type


def gguf_layout(file: GGUFFile) -> Layout:
    return LAYOUTS[_architecture(file)]


def gguf_config(file: GGUFFile) -> ModelConfig:
    """Raises ModelError naming the file and the key."""
    arch = _architecture(file)
    c = Fields(file.path.name, file.metadata)
    if (parts := c.integer("split.count", 0, low=0)) > 1:
        raise c.error("split.count", parts, "1: files in parts are not read; join them with llama-gguf-split --merge")
    if c.integer(f"{arch}.expert_count", 0, low=0):
        raise c.error(f"{arch}.expert_count", c.raw[f"{arch}.expert_count"], "0: experts are not supported yet")
    layers, width = c.integer(f"{arch}.block_count", high=1024), c.integer(f"{arch}.embedding_length")
    heads = c.integer(f"{arch}.attention.head_count")
    kv_heads = _same_everywhere(c, f"{arch}.attention.head_count_kv", heads)
    if heads % kv_heads:
        raise c.error(f"{arch}.attention.head_count_kv", kv_heads, f"a divisor of the head count {heads}")
    head_dim = _head_dim(c, arch, width, heads)
    window = c.integer(f"{arch}.attention.sliding_window", 0, low=0, high=1 << 31)
    has = lambda name: name in file.names
    return ModelConfig(
        family=arch, vocab_size=_vocabulary(c, file, width), width=width, layers=layers, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ff_width=_same_everywhere(c, f"{arch}.feed_forward_length"),
        norm_eps=c.number(f"{arch}.attention.layer_norm_rms_epsilon", high=1),
        max_positions=c.integer(f"{arch}.context_length"), rope=_rope(c, arch, file, head_dim),
        tied_embeddings=not has("output.weight"), qkv_bias=has("blk.0.attn_q.bias"),
        o_bias=has("blk.0.attn_output.bias"), mlp_bias=has("blk.0.ffn_down.bias"),
        qk_norm=has("blk.0.attn_q_norm.weight"),
        windows=(window,) * layers if window else (),
        bos_token_id=c.integer("tokenizer.ggml.bos_token_id", None, low=0), eos_token_ids=_ends(c),
    )


def gguf_generation(file: GGUFFile) -> GenerationDefaults:
    """From general.sampling.*, which few files have."""
    c, at = Fields(file.path.name, file.metadata), "general.sampling."
    return GenerationDefaults(
        temperature=c.number(at + "temp", None, low=-1), top_p=c.number(at + "top_p", None, high=1),
        top_k=c.integer(at + "top_k", None, low=0), min_p=c.number(at + "min_p", None, low=-1, high=1),
        repetition_penalty=c.number(at + "penalty_repeat", None),
    )


def _architecture(file: GGUFFile) -> str:
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in LAYOUTS:
        raise ModelError(f"{file.path.name}: general.architecture {arch!r:.60} is not supported; "
                         f"there are: {', '.join(LAYOUTS)}")
    return arch


def _same_everywhere(c: Fields, key: str, *default: int) -> int:
    """A number that may be given for each layer, if it is the same for all."""
    value = c.raw.get(key)
    if not isinstance(value, np.ndarray):
        return c.integer(key, *default)
    if not len(value) or (value != value[0]).any():
        raise c.error(key, value.tolist(), "the same for every layer")
    return Fields(c.file, {key: value[0].item()}).integer(key)


def _head_dim(c: Fields, arch: str, width: int, heads: int) -> int:
    """Of keys, values and rope alike."""
    if not (f"{arch}.attention.key_length" in c.raw or width % heads == 0):
        raise c.error(f"{arch}.embedding_length", width, f"a multiple of the head count {heads}")
    head_dim = c.integer(f"{arch}.attention.key_length", width // heads, high=1 << 12)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := c.integer(f"{arch}.{key}", head_dim, high=1 << 12)) != head_dim:
            raise c.error(f"{arch}.{key}", other, f"the size of a head, {head_dim}")
    if head_dim % 2:
        raise c.error(f"{arch}.attention.key_length", head_dim, "even")
    return head_dim


def _vocabulary(c: Fields, file: GGUFFile, width: int) -> int:
    """The rows of the embedding; a vocabulary that is larger would point beyond it."""
    shape = file.entry("token_embd.weight").shape
    if len(shape) != 2 or shape[1] != width or shape[0] >= 1 << 24:
        raise ModelError(f"{c.file}: token_embd.weight has shape {list(shape)}, its width should be {width}")
    tokens = c.raw.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > shape[0]:
        raise ModelError(f"{c.file}: tokenizer.ggml.tokens has {len(tokens)} tokens, token_embd.weight {shape[0]} rows")
    return shape[0]


def _rope(c: Fields, arch: str, file: GGUFFile, head_dim: int) -> Rope:
    theta, at = c.number(f"{arch}.rope.freq_base", 10000.0, low=1), f"{arch}.rope.scaling."
    factors = _factors(file, head_dim)
    kind = c.raw.get(at + "type", "none")
    if kind == "none":
        return Rope(theta=theta, factors=factors)
    if kind not in ("linear", "yarn"):
        raise c.error(at + "type", kind, "none, linear or yarn")
    factor = c.number(at + "factor")
    own = c.number(at + "attn_factor", None)  # times yarn's usual one
    return Rope(
        theta=theta, kind=kind, factor=factor, factors=factors,
        original_positions=c.integer(at + "original_context_length", None) or c.integer(f"{arch}.context_length"),
        beta_fast=c.number(at + "yarn_beta_fast", 32.0), beta_slow=c.number(at + "yarn_beta_slow", 1.0),
        attention_factor=None if own is None else own * (0.1 * math.log(max(factor, 1)) + 1),
    )


def _factors(file: GGUFFile, head_dim: int) -> tuple[float, ...]:
    """rope_freqs.weight: by what llama3's rule divides each frequency, computed by the converter."""
    if "rope_freqs.weight" not in file.names:
        return ()
    a: Any = file.tensor("rope_freqs.weight")
    if a.shape != (head_dim // 2,) or not (np.isfinite(a) & (a > 0)).all():
        raise ModelError(f"{file.path.name}: rope_freqs.weight must be {head_dim // 2} numbers above 0")
    return tuple(a.astype(float).tolist())


def _ends(c: Fields) -> tuple[int, ...]:
    """The ids that end an answer: those that the metadata name, and the control tokens that are known to."""
    named = [c.integer(f"tokenizer.ggml.{key}_token_id", None, low=0) for key in ("eos", "eot", "eom")]
    tokens, types = c.raw.get("tokenizer.ggml.tokens", []), c.raw.get("tokenizer.ggml.token_type", ())
    known = [tokens.index(end) for end in ENDS if end in tokens]
    known = [i for i in known if i < len(types) and types[i] == CONTROL]
    return tuple(dict.fromkeys(i for i in [*named, *known] if i is not None))
