"""Mistral 7B (arXiv 2310.06825): Llama with a window over all layers; also in Mistral's own params.json."""
from gramme.config import ModelConfig, Rope
from gramme.formats.fields import Fields
from gramme.models.families.common import shared

ARCHITECTURE = "MistralForCausalLM"
UNSUPPORTED = {"moe", "yarn", "quantization", "vision_encoder"}  # params.json


def config(c: Fields) -> ModelConfig:
    window = c.integer("sliding_window", None, high=1 << 31)
    return ModelConfig(family="mistral", **shared(c, windows=(window,) * c.integer("num_hidden_layers", high=1024)))


def params(c: Fields) -> ModelConfig:
    """params.json: the names of mistral-inference."""
    width, heads, layers = c.integer("dim"), c.integer("n_heads"), c.integer("n_layers", high=1024)
    kv_heads, head_dim = c.integer("n_kv_heads", heads), c.integer("head_dim", width // heads, high=1 << 12)
    if heads % kv_heads:
        raise c.error("n_kv_heads", kv_heads, f"a divisor of n_heads {heads}")
    if head_dim < 2 or head_dim % 2:
        raise c.error("head_dim", head_dim, "even")
    for key in sorted(UNSUPPORTED & c.raw.keys()):
        if c.raw[key] is not None:
            raise c.error(key, c.raw[key], "absent: it is not supported")
    window = c.integer("sliding_window", None, high=1 << 31)
    return ModelConfig(
        family="mistral", vocab_size=c.integer("vocab_size"), width=width, layers=layers, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim,
        ff_width=c.integer("hidden_dim"), norm_eps=c.number("norm_eps", 1e-5, high=1),
        max_positions=c.integer("max_position_embeddings", c.integer("max_seq_len", 32768)),
        rope=Rope(theta=c.number("rope_theta", 10000.0)), tied_embeddings=c.flag("tied_embeddings"),
        windows=(window,) * layers, bos_token_id=1, eos_token_ids=(2,),
    )
