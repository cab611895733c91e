"""What Llama's descendants share: the fields of their config.json."""
from typing import Any

from gramme.config import ModelError, Rope
from gramme.formats.fields import Fields

ATTENTION = ("full_attention", "sliding_attention")


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
    return {
        "vocab_size": c.integer("vocab_size"), "width": width, "layers": c.integer("num_hidden_layers", high=1024),
        "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "ff_width": c.integer("intermediate_size"),
        "norm_eps": c.number("rms_norm_eps", 1e-6, high=1), "max_positions": c.integer("max_position_embeddings", 2048),
        "rope": rope(c), "tied_embeddings": c.flag("tie_word_embeddings"),
        "bos_token_id": (c.ids("bos_token_id") or (None,))[0], "eos_token_ids": c.ids("eos_token_id"),
    } | differs


def rope(c: Fields) -> Rope:
    """transformers 5 writes rope_parameters, with the theta inside; earlier ones rope_theta and rope_scaling."""
    raw = c.raw.get("rope_parameters") or c.raw.get("rope_scaling") or {}
    if not isinstance(raw, dict):
        raise c.error("rope_scaling", raw, "an object")
    s = Fields(f"{c.file}: rope", raw)
    theta = s.number("rope_theta", None, low=1) or c.number("rope_theta", 10000.0, low=1)
    if (part := s.number("partial_rotary_factor", c.number("partial_rotary_factor", 1.0))) != 1:
        raise c.error("partial_rotary_factor", part, "1: rope on a part of a head is not supported")
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"{c.file}: rope scaling {kind!r:.40} is not supported; default, linear, llama3 and yarn are")
    if kind == "default":
        return Rope(theta=theta)
    low, high = s.number("low_freq_factor", 1.0), s.number("high_freq_factor", 4.0)
    if low >= high:
        raise s.error("high_freq_factor", high, f"above low_freq_factor {low:g}")
    original = s.integer("original_max_position_embeddings", None) or c.integer("max_position_embeddings", 2048)
    return Rope(
        theta=theta, kind=kind, factor=s.number("factor"), original_positions=original,
        low_freq_factor=low, high_freq_factor=high,
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
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or not all(kind in ATTENTION for kind in types):
            raise c.error("layer_types", types, f"a list of {layers}, each one of {', '.join(ATTENTION)}")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = c.integer("max_window_layers", layers, low=0)
    return tuple(window if i >= first else None for i in range(layers))
