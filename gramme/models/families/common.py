"""What Llama's descendants share: the fields of their config.json."""
from typing import Any

from gramme.config import ModelError, Rope
from gramme.models.fields import Fields


def shared(c: Fields, **differs: Any) -> dict[str, Any]:
    """ModelConfig's arguments, with a family's own ones laid over them."""
    width, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    kv_heads = c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise c.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    head_dim = c.integer("head_dim", None, high=1 << 12)
    if head_dim is None and width % heads:
        raise c.error("hidden_size", width, f"a multiple of num_attention_heads {heads} when there is no head_dim")
    head_dim = head_dim or width // heads
    if head_dim % 2:
        raise c.error("head_dim", head_dim, "even")
    if c.raw.get("hidden_act", "silu") != "silu":
        raise c.error("hidden_act", c.raw["hidden_act"], "silu")
    return dict(
        vocab_size=c.integer("vocab_size"), width=width, layers=c.integer("num_hidden_layers", high=1024), heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ff_width=c.integer("intermediate_size"),
        norm_eps=c.number("rms_norm_eps", 1e-6, high=1), max_positions=c.integer("max_position_embeddings", 2048),
        rope=rope(c), tied_embeddings=c.flag("tie_word_embeddings"), bos_token_id=(c.ids("bos_token_id") or (None,))[0],
        eos_token_ids=c.ids("eos_token_id"),
    ) | differs


def rope(c: Fields) -> Rope:
    """transformers 5 writes rope_parameters, with the theta inside; earlier ones rope_theta and rope_scaling."""
    raw = c.raw.get("rope_parameters") or c.raw.get("rope_scaling") or {}
    if not isinstance(raw, dict):
        raise c.error("rope_scaling", raw, "an object")
    s = Fields(f"{c.file}: rope", raw)
    theta = s.number("rope_theta", None) or c.number("rope_theta", 10000.0)
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"{c.file}: rope scaling {kind!r:.40} is not supported; default, linear, llama3 and yarn are")
    if kind == "default":
        return Rope(theta=theta)
    original = s.integer("original_max_position_embeddings", None) or c.integer("max_position_embeddings", 2048)
    return Rope(
        theta=theta, kind=kind, factor=s.number("factor"), original_positions=original,
        low_freq_factor=s.number("low_freq_factor", 1.0), high_freq_factor=s.number("high_freq_factor", 4.0),
        beta_fast=s.number("beta_fast", 32.0), beta_slow=s.number("beta_slow", 1.0),
        attention_factor=s.number("attention_factor", None), mscale=s.number("mscale", None),
        mscale_all_dim=s.number("mscale_all_dim", None), truncate=s.flag("truncate", True),
    )


def layer_windows(c: Fields) -> tuple[int | None, ...]:
    """Qwen: a window where layer_types says so, or from layer max_window_layers on."""
    window, layers = c.integer("sliding_window", None, high=1 << 31), c.integer("num_hidden_layers", high=1024)
    if window is None or not c.flag("use_sliding_window"):
        return ()
    types = c.raw.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = c.integer("max_window_layers", layers, low=0)
    return tuple(window if i >= first else None for i in range(layers))
