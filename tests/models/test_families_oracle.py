"""What transformers' config classes write is read as they mean it, for random sizes of each family."""
import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from gramme.models.config import read_config  # noqa: E402


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_fields_are_those_of_transformers(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    kv_heads, head_dim = int(rng.integers(1, 5)), 2 * int(rng.integers(4, 40))
    heads = kv_heads * int(rng.integers(1, 5))
    sizes = {
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": heads * head_dim,
        "intermediate_size": int(rng.integers(1, 5000)), "vocab_size": int(rng.integers(10, 200_000)),
        "num_hidden_layers": int(rng.integers(1, 50)), "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "max_position_embeddings": int(rng.integers(1, 1 << 17)), "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.integers(1000, 1_000_000))},
        "bos_token_id": 3, "eos_token_id": [4, 5], "sliding_window": int(rng.integers(1, 100))}
    if name.startswith("Qwen"):
        sizes |= {"use_sliding_window": bool(rng.integers(2)), "max_window_layers": int(rng.integers(0, 50))}
    if name == "Qwen3":
        sizes["head_dim"] = head_dim
    if name == "Llama":
        sizes |= {"attention_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
    theirs = getattr(transformers, f"{name}Config")(**sizes, architectures=[f"{name}ForCausalLM"])
    theirs.save_pretrained(tmp_path)
    m = read_config(tmp_path)
    assert m.family == name.lower()
    assert (m.vocab_size, m.width, m.layers) == (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers)
    assert (m.heads, m.kv_heads, m.head_dim) == (heads, kv_heads, head_dim)
    assert (m.ff_width, m.norm_eps) == (theirs.intermediate_size, theirs.rms_norm_eps)
    assert (m.max_positions, m.tied_embeddings) == (theirs.max_position_embeddings, theirs.tie_word_embeddings)
    assert (m.bos_token_id, m.eos_token_ids) == (3, (4, 5))
    assert (m.rope.kind, m.rope.theta) == ("default", theirs.rope_parameters["rope_theta"])
    kinds = getattr(theirs, "layer_types", ["sliding_attention" if name == "Mistral" else "full_attention"] * m.layers)
    windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    assert [m.window(i) for i in range(m.layers)] == windows
    if name == "Llama":
        assert (m.qkv_bias, m.o_bias, m.mlp_bias) == (theirs.attention_bias, theirs.attention_bias, theirs.mlp_bias)
