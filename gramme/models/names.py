"""Our parameter names and a file's: the Hugging Face layout, Mistral's own and GGUF's. Knows no values."""
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from gramme.config import ModelConfig, ModelError, Stored, matrix_bytes
from gramme.formats.grouped import Form, Grouped, Reordered, rows, stacked_form


@dataclass(frozen=True)
class Layout:
    """How a file names what we name."""

    title: str
    names: Mapping[str, str]  # ours -> theirs, without ".weight"
    layer: str  # what stands before a layer's number
    interleaved: bool = False  # the rope pairs of q and k are rows (2i, 2i + 1) of a head


HF = Layout("the Hugging Face layout", {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}, "model.layers.")
MISTRAL = Layout("Mistral's own layout", {
    "embed": "tok_embeddings", "norm": "norm", "head": "output", "attn_norm": "attention_norm", "mlp_norm": "ffn_norm",
    "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
}, "layers.", interleaved=True)
GGUF = Layout("GGUF", {
    "embed": "token_embd", "norm": "output_norm", "head": "output", "attn_norm": "attn_norm", "mlp_norm": "ffn_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}, "blk.")
GGUF_LLAMA = replace(GGUF, interleaved=True)  # llama.cpp's converter reorders the rows of this architecture alone
SKIPPED = re.compile(r".*\.rotary_emb\.inv_freq|rope_freqs\.weight")  # computed or read with the config


class Forms(Protocol):
    def form(self, name: str, columns: int) -> Form | None: ...  # None: floats, or no such tensor


class Tensors(Forms, Protocol):
    """What a file gives: names, and a tensor for each."""

    notes: tuple[str, ...]  # how they are stored, and what reading them costs

    @property
    def names(self) -> list[str]: ...
    def home(self, name: str) -> str: ...  # the file's name
    def tensor(self, name: str) -> np.ndarray | Grouped | Reordered: ...


def source_of(tensors: Tensors, layout: Layout, m: ModelConfig, wanted: Mapping[str, tuple[int, ...]],
              ) -> tuple[Callable[[str], np.ndarray | Grouped | Reordered], Callable[[], None]]:
    """(source, check): tensors under our names; check raises ModelError naming tensors that nobody asked for.

    `source` raises ModelError naming file and tensor when one is missing or its shape is not the config's.
    """
    theirs = {ours: their_name(ours, layout) for ours in wanted}

    def source(ours: str) -> np.ndarray | Grouped | Reordered:
        a, name = tensors.tensor(theirs[ours]), theirs[ours]
        if a.shape != wanted[ours]:
            raise ModelError(f"{tensors.home(name)}: {name} has shape {list(a.shape)}, the config says "
                             f"{list(wanted[ours])}")
        heads = {"q": m.heads, "k": m.kv_heads}.get(ours.removesuffix(".bias").rpartition(".")[2])
        return uninterleave(a, heads) if layout.interleaved and heads else a

    def check() -> None:
        tied = {their_name("head", layout)} if m.tied_embeddings else set()
        left = [n for n in tensors.names if n not in {*theirs.values(), *tied} and not SKIPPED.fullmatch(n)]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(f"{tensors.home(left[0])}: the config has no place for {', '.join(left[:3])}{more}")

    return source, check


def stored(tensors: Forms, layout: Layout, m: ModelConfig, wanted: Mapping[str, tuple[int, ...]]) -> Stored:
    """What the loader keeps as integers: where all matrices that are multiplied as one are."""
    def size(prefix: str, *parts: str) -> tuple[int, int]:
        shapes = [wanted[prefix + part] for part in parts if prefix + part in wanted]
        columns = shapes[0][1] if shapes else 0
        forms = [tensors.form(their_name(prefix + part, layout), columns) for part in parts]
        known = [f for f in forms if f is not None]
        if not shapes or len(known) < len(forms):
            return 0, 0
        form, rows = stacked_form(known), sum(shape[0] for shape in shapes)
        return rows * columns, matrix_bytes(rows, columns, f"int{form.bits}", form.group, form.offsets)

    multiplied = "qkv", "o", ("gate", "up"), ("down",)
    layers = [size(f"layers.{i}.", *parts) for i in range(m.layers) for parts in multiplied]
    return Stored(layers=(sum(n for n, _ in layers), sum(b for _, b in layers)), embed=size("", "embed"),
                  head=size("", "head"))


def uninterleave(a: np.ndarray | Grouped, heads: int) -> np.ndarray | Grouped:
    """(H * Dh, ...) whose rope pairs are rows (2i, 2i + 1) of a head -> pairs (i, i + Dh / 2), as `ops.rope` wants."""
    order = np.arange(a.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
    return rows(a, order) if isinstance(a, Grouped) else a[order]


def their_name(ours: str, layout: Layout) -> str:
    match = re.fullmatch(r"(?:layers\.(\d+)\.)?(\w+?)(\.bias)?", ours)
    assert match
    layer, name, bias = match.groups()
    if name not in layout.names:
        raise ModelError(f"{layout.title} has no {name}")
    where = "" if layer is None else f"{layout.layer}{layer}."
    return where + layout.names[name] + (bias or ".weight")
