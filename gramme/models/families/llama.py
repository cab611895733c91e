"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783)."""
from gramme.config import ModelConfig
from gramme.formats.fields import Fields
from gramme.models.families.common import shared

ARCHITECTURE = "LlamaForCausalLM"


def config(c: Fields) -> ModelConfig:
    bias = c.flag("attention_bias")
    return ModelConfig(family="llama", **shared(c, qkv_bias=bias, o_bias=bias, mlp_bias=c.flag("mlp_bias")))
