"""A small model with random weights, for what `gramme quantize` makes of it; no test in here."""
import json

import numpy as np

from gramme.config import ModelConfig
from gramme.formats.safetensors import write_safetensors
from gramme.models.config import read_config
from gramme.models.load import random_source, shapes
from gramme.models.names import HF, their_name
from gramme.models.open import EMBEDDED
from gramme.quantize.hf import hf_config

MODEL = ModelConfig(family="llama", vocab_size=read_config(EMBEDDED).vocab_size, width=64, layers=3, heads=4,
                    kv_heads=2, head_dim=16, ff_width=96, norm_eps=1e-5, max_positions=128, qkv_bias=True, o_bias=True,
                    mlp_bias=True, tied_embeddings=True)


def save(directory, m=MODEL):
    """In float16, in the Hugging Face layout, with the embedded model's tokenizer."""
    source = random_source(m, 5)
    write_safetensors(directory / "model.safetensors", {
        their_name(ours, HF): source(ours).astype(np.float16) for ours, _ in shapes(m)})
    (directory / "config.json").write_text(json.dumps(hf_config(m) | {"note": "kept"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (directory / name).write_bytes((EMBEDDED / name).read_bytes())
    return directory
