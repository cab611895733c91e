"""Our parameter names and a checkpoint's: the Hugging Face layout and Mistral's own. Knows no values."""
import re
from collections.abc import Callable, Mapping

import numpy as np

from gramme.config import ModelConfig, ModelError
from gramme.formats.checkpoint import Checkpoint

HF = {
    "embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight",
    "attn_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
MISTRAL = {
    "embed": "tok_embeddings.weight", "norm": "norm.weight", "head": "output.weight",
    "attn_norm": "attention_norm.weight", "mlp_norm": "ffn_norm.weight",
    "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
}
SKIPPED = re.compile(r".*\.rotary_emb\.inv_freq")  # written by old tools; computed from the config


def checkpoint_source(checkpoint: Checkpoint, m: ModelConfig,
                      wanted: Mapping[str, object]) -> tuple[Callable[[str], np.ndarray], Callable[[], None]]:
    """(source, check): tensors under our names; check raises ModelError naming tensors that nobody asked for."""
    mistral = "tok_embeddings.weight" in checkpoint.names
    theirs = {ours: _their_name(ours, mistral) for ours in wanted}

    def source(ours: str) -> np.ndarray:
        a = checkpoint.tensor(theirs[ours])
        heads = {"q": m.heads, "k": m.kv_heads}.get(ours.rpartition(".")[2])
        return uninterleave(a, heads) if mistral and heads and a.shape == wanted[ours] else a

    def check() -> None:
        tied = {_their_name("head", mistral)} if m.tied_embeddings else set()
        left = [n for n in checkpoint.names if n not in {*theirs.values(), *tied} and not SKIPPED.fullmatch(n)]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(f"the config has no place for {', '.join(left[:3])}{more}")

    return source, check


def uninterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """(H * Dh, K) whose rope pairs are rows (2i, 2i + 1) of a head -> pairs (i, i + Dh / 2), as `ops.rope` wants."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _their_name(ours: str, mistral: bool) -> str:
    table = MISTRAL if mistral else HF
    match = re.fullmatch(r"layers\.(\d+)\.(\w+?)(\.bias)?", ours)
    if match is None:
        return table[ours]
    layer, name, bias = match.groups()
    if name not in table:
        raise ModelError(f"Mistral's own layout has no {name}")
    leaf = table[name] if table[name].endswith(".weight") else table[name] + (bias or ".weight")
    return f"layers.{layer}.{leaf}" if mistral else f"model.layers.{layer}.{leaf}"
