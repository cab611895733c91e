"""Writes a trained decoder as a model directory in the Hugging Face layout that gramme and others read."""
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from gramme.config import ModelConfig
from gramme.models.decoder import Decoder

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(decoder: Decoder, m: ModelConfig, run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file({n: a.to(torch.bfloat16).contiguous() for n, a in hf_tensors(decoder, m)}, out / "model.safetensors",
              {"format": "pt"})
    (out / "config.json").write_text(json.dumps(hf_config(m), indent=1) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "temperature": 0.0}) + "\n")
    for name in TEXT_FILES:
        shutil.copy(run / name, out / name)


def hf_tensors(decoder: Decoder, m: ModelConfig):
    """(name, tensor) in the Hugging Face layout."""
    yield "model.embed_tokens.weight", decoder.embed.packed.detach()
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    for i, layer in enumerate(decoder.layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", layer.attn_norm.detach()
        yield p + "post_attention_layernorm.weight", layer.mlp_norm.detach()
        for name, part in zip("qkv", layer.qkv.packed.detach().split([q, kv, kv]), strict=True):
            yield f"{p}self_attn.{name}_proj.weight", part
        yield p + "self_attn.o_proj.weight", layer.o.packed.detach()
        for name, part in zip(("gate", "up"), layer.gate_up.packed.detach().chunk(2), strict=True):
            yield f"{p}mlp.{name}_proj.weight", part
        yield p + "mlp.down_proj.weight", layer.down.packed.detach()
    yield "model.norm.weight", decoder.norm.detach()
    if not m.tied_embeddings:
        yield "lm_head.weight", decoder.head.packed.detach()


def hf_config(m: ModelConfig) -> dict:
    return {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": m.vocab_size,
        "hidden_size": m.width, "intermediate_size": m.ff_width, "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim,
        "hidden_act": "silu", "max_position_embeddings": m.max_positions, "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope.theta, "sliding_window": None, "tie_word_embeddings": m.tied_embeddings,
        "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
    }
