"""Qwen3, dense (arXiv 2505.09388): norms on each head of q and k, heads wider than width / heads."""
from gramme.config import ModelConfig
from gramme.formats.fields import Fields
from gramme.models.families.common import layer_windows, shared

ARCHITECTURE = "Qwen3ForCausalLM"


def config(c: Fields) -> ModelConfig:
    bias = c.flag("attention_bias")
    return ModelConfig(
        family="qwen3", **shared(c, qk_norm=True, qkv_bias=bias, o_bias=bias, head_dim=c.integer("head_dim", 128),
                                 windows=layer_windows(c)))
