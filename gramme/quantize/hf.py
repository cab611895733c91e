"""A model's config.json in the Hugging Face layout, for models that bring none: dummies, and Mistral's own layout."""
from typing import Any

from gramme.config import ConfigError, ModelConfig, Rope

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def hf_config(m: ModelConfig) -> dict[str, Any]:
    """Raises ConfigError for windows on some layers only, which no family that gets here has."""
    if len(set(m.windows)) > 1:
        raise ConfigError("a config.json with windows on some layers only is not written")
    return {
        "architectures": [f"{CLASSES[m.family]}ForCausalLM"], "model_type": m.family, "vocab_size": m.vocab_size,
        "hidden_size": m.width, "intermediate_size": m.ff_width, "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim,
        "hidden_act": "silu", "max_position_embeddings": m.max_positions, "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope.theta, "rope_scaling": _scaling(m.rope), "tie_word_embeddings": m.tied_embeddings,
        "sliding_window": m.window(0), "use_sliding_window": m.window(0) is not None, "attention_bias": m.o_bias,
        "mlp_bias": m.mlp_bias, "bos_token_id": m.bos_token_id, "eos_token_id": list(m.eos_token_ids) or None,
        "torch_dtype": m.dtype,
    }


def _scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.kind == "default":
        return None
    names = {"linear": (), "llama3": ("low_freq_factor", "high_freq_factor"),
             "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")}[rope.kind]
    own = {name: getattr(rope, name) for name in names}
    return {"rope_type": rope.kind, "factor": rope.factor, "original_max_position_embeddings": rope.original_positions,
            **{name: value for name, value in own.items() if value is not None}}
