"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on q, k and v; a window on the later layers when it is switched on."""
from gramme.config import ModelConfig
from gramme.formats.fields import Fields
from gramme.models.families.common import layer_windows, shared

ARCHITECTURE = "Qwen2ForCausalLM"


def config(c: Fields) -> ModelConfig:
    return ModelConfig(family="qwen2", **shared(c, qkv_bias=True, windows=layer_windows(c)))
