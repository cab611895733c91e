"""config.json of each family becomes the right ModelConfig; a wrong field is named with its value, in one line."""
import json

import numpy as np
import pytest

from gramme.config import GenerationDefaults, ModelError, Rope
from gramme.formats.checkpoint import Checkpoint
from gramme.formats.safetensors import write_safetensors
from gramme.kernels.reference import REFERENCE
from gramme.models.config import read_config, read_generation
from gramme.models.load import shapes
from gramme.models.names import HF, source_of, uninterleave
from gramme.models.rope import rope_table

BASE = dict(
    architectures=["LlamaForCausalLM"], vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=5000.0,
    bos_token_id=1, eos_token_id=[2, 7], hidden_act="silu")
OWN = dict(dim=64, n_layers=3, head_dim=32, hidden_dim=96, n_heads=4, n_kv_heads=2, norm_eps=1e-5, vocab_size=300,
           rope_theta=1e6)


def read(tmp_path, name="config.json", base=BASE, **more):
    (tmp_path / name).write_text(json.dumps({k: v for k, v in (base | more).items() if v != "absent"}))
    return read_config(tmp_path)


def family(name):
    return dict(architectures=[f"{name}ForCausalLM"])


def test_llama(tmp_path):
    m = read(tmp_path)
    assert (m.family, m.width, m.layers, m.heads, m.kv_heads, m.head_dim, m.ff_width) == ("llama", 64, 3, 4, 2, 16, 96)
    assert (m.vocab_size, m.max_positions, m.norm_eps, m.rope) == (300, 512, 1e-5, Rope(theta=5000.0))
    assert (m.bos_token_id, m.eos_token_ids) == (1, (2, 7))
    assert not m.tied_embeddings and not m.qkv_bias and not m.qk_norm
    biased = read(tmp_path, attention_bias=True, mlp_bias=True, eos_token_id=2, tie_word_embeddings=True)
    assert biased.qkv_bias and biased.o_bias and biased.mlp_bias and biased.tied_embeddings
    assert biased.eos_token_ids == (2,)
    assert read(tmp_path, num_key_value_heads="absent").kv_heads == 4


def test_mistral(tmp_path):
    m = read(tmp_path, **family("Mistral"), sliding_window=128, head_dim=32)
    assert (m.family, m.windows, m.head_dim) == ("mistral", (128,) * 3, 32)
    assert read(tmp_path, **family("Mistral"), sliding_window=None).window(0) is None


def test_qwen(tmp_path):
    m = read(tmp_path, **family("Qwen2"), sliding_window=64, use_sliding_window=False)
    assert (m.family, m.qkv_bias, m.o_bias, m.window(2)) == ("qwen2", True, False, None)
    on = dict(sliding_window=64, use_sliding_window=True)
    assert read(tmp_path, **family("Qwen2"), **on, max_window_layers=2).windows == (None, None, 64)
    types = ["sliding_attention", "full_attention", "full_attention"]
    m = read(tmp_path, **family("Qwen3"), **on, layer_types=types, head_dim="absent")
    assert (m.family, m.qk_norm, m.qkv_bias, m.head_dim, m.windows) == ("qwen3", True, False, 128, (64, None, None))
    with pytest.raises(ModelError, match="layer_types must be a list of 3"):
        read(tmp_path, **family("Qwen3"), **on, layer_types=["chunked_attention"] * 3)


def test_model_type_stands_in_for_architectures(tmp_path):
    assert read(tmp_path, architectures="absent", model_type="qwen3").family == "qwen3"


def test_mistrals_own_params(tmp_path):
    m = read(tmp_path, "params.json", OWN, sliding_window=16)
    assert (m.family, m.width, m.head_dim, m.ff_width, m.windows) == ("mistral", 64, 32, 96, (16,) * 3)
    assert (m.rope.theta, m.norm_eps, m.tied_embeddings) == (1e6, 1e-5, False)
    assert read(tmp_path, "params.json", OWN, head_dim="absent").head_dim == 16
    for more, message in (({"moe": {"num_experts": 8}}, "moe"), ({"yarn": {"factor": 2}}, "yarn"),
                          ({"n_kv_heads": 3}, "n_kv_heads must be a divisor of n_heads 4"), ({"head_dim": 15}, "even"),
                          ({"dim": "x"}, "dim must be an integer")):
        with pytest.raises(ModelError, match=message):
            read(tmp_path, "params.json", OWN, **more)


ROPES = {
    "new default": (dict(rope_theta="absent", rope_parameters=dict(rope_type="default", rope_theta=7.0)),
                    Rope(theta=7.0)),
    "old linear": (dict(rope_scaling=dict(type="linear", factor=2)),
                   Rope(theta=5000.0, kind="linear", factor=2.0, original_positions=512)),
    "old yarn": (dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=128)),
                 Rope(theta=5000.0, kind="yarn", factor=4.0, original_positions=128)),
    "new yarn": (dict(rope_parameters=dict(rope_type="yarn", rope_theta=9.0, factor=4.0, beta_fast=16, truncate=False,
                                           original_max_position_embeddings=128, attention_factor=1.5)),
                 Rope(theta=9.0, kind="yarn", factor=4.0, original_positions=128, beta_fast=16.0,
                      attention_factor=1.5, truncate=False)),
    "llama3": (dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=256)),
               Rope(theta=5000.0, kind="llama3", factor=8.0, original_positions=256)),
    "none": (dict(rope_scaling=None), Rope(theta=5000.0)),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_scaling_old_and_new(tmp_path, name):
    more, want = ROPES[name]
    assert read(tmp_path, **more).rope == want


NAN, INF, HUGE = float("nan"), float("inf"), 10**400
WRONG = [
    *({key: value} for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
      for value in (0, -1, 1 << 31, "x", True, 1.5, [], "absent", HUGE)),
    *(dict(rope_theta=value) for value in (0, 0.5, -1.0, NAN, INF, "x", True, HUGE)),
    *(dict(rms_norm_eps=value) for value in (0, -1e-6, NAN, 2, "x")),
    dict(num_hidden_layers=100_000), dict(num_key_value_heads=3), dict(hidden_size=66), dict(head_dim=15),
    dict(head_dim=1 << 20), dict(hidden_act="gelu"), dict(tie_word_embeddings=1), dict(eos_token_id="x"),
    dict(eos_token_id=[1, True]), dict(eos_token_id=-1), dict(max_position_embeddings=0), dict(intermediate_size=0),
    dict(rope_scaling=[1]), dict(partial_rotary_factor=0.5),
]


@pytest.mark.parametrize("more", WRONG, ids=lambda more: f"{more!r:.40}")
def test_a_wrong_field_is_named_with_its_value(tmp_path, more):
    with pytest.raises(ModelError) as caught:
        read(tmp_path, **more)
    text, (key, value) = str(caught.value), next(iter(more.items()))
    assert text.startswith("config.json: ") and key in text and "\n" not in text and len(text) < 250
    assert value == "absent" or repr(value)[:20] in text


@pytest.mark.parametrize("scaling, message", [
    (dict(type="dynamic", factor=2.0), "'dynamic' is not supported"),
    (dict(rope_type="longrope", factor=2.0), "'longrope' is not supported"),
    (dict(rope_type="new"), "'new' is not supported"), (dict(rope_type=["yarn"]), "not supported"),
    (dict(rope_type="linear"), "factor is missing"), (dict(rope_type="yarn", factor=0), "factor must be"),
    (dict(rope_type="llama3", factor=8, low_freq_factor=4.0, high_freq_factor=4.0), "above low_freq_factor 4"),
])
def test_rope_that_cannot_be_run_is_refused_by_name(tmp_path, scaling, message):
    with pytest.raises(ModelError, match=message):
        read(tmp_path, rope_scaling=scaling)


@pytest.mark.parametrize("architectures", [
    ["MixtralForCausalLM"], ["Gemma2ForCausalLM"], ["Phi3ForCausalLM"], ["Qwen3MoeForCausalLM"], [], [[]], "Llama", 3])
def test_other_architectures_are_refused_by_name(tmp_path, architectures):
    with pytest.raises(ModelError, match="is not supported; there are: LlamaForCausalLM"):
        read(tmp_path, architectures=architectures)


def test_code_beside_the_model_is_not_run(tmp_path):
    (tmp_path / "modeling.py").write_text("raise SystemExit('run')")
    assert read(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Model"}).family == "llama"


def test_generation_defaults(tmp_path):
    assert read_generation(tmp_path, "auto") == read_generation(tmp_path, "none") == GenerationDefaults()
    said = dict(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05, eos_token_id=[5, 6])
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    want = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05, eos_token_ids=(5, 6))
    assert read_generation(tmp_path, "auto") == read_generation(tmp_path / "x", str(tmp_path)) == want
    assert read_generation(tmp_path, "none") == GenerationDefaults()
    (tmp_path / "generation_config.json").write_text(json.dumps(dict(top_p=2)))
    with pytest.raises(ModelError, match=r"generation_config.json: top_p must be .*, not 2"):
        read_generation(tmp_path, "auto")
    with pytest.raises(ModelError, match=r"absent.json: No such file"):
        read_generation(tmp_path, str(tmp_path / "absent.json"))


def test_rope_of_interleaved_pairs_is_rope_of_halves_of_the_permuted_rows():
    heads, size, width, tokens = 3, 8, 5, 4
    rng = np.random.default_rng(0)
    rows, x = rng.normal(size=(heads * size, width)), rng.normal(size=(tokens, width))
    table, positions = rope_table(Rope(), size, 16), np.array([0, 1, 7, 15])
    permuted = (x @ uninterleave(rows, heads).T).reshape(tokens, heads, size).astype(np.float32)
    ours = REFERENCE.rope(permuted, table, positions)
    pairs = (x @ rows.T).reshape(tokens, heads, size // 2, 2)
    angles = positions[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_tensors_without_a_place_are_named_and_known_leftovers_are_not(tmp_path):
    m = read(tmp_path, tie_word_embeddings=True)
    tensors = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
               "lm_head.weight": np.ones((300, 64), np.float32)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    source_of(Checkpoint(tmp_path), HF, m, dict(shapes(m)))[1]()
    write_safetensors(tmp_path / "model.safetensors", tensors | {"model.layers.9.x": np.ones(1, np.float32)})
    with pytest.raises(ModelError, match=r"no place for model.layers.9.x$"):
        source_of(Checkpoint(tmp_path), HF, m, dict(shapes(m)))[1]()


def test_a_tensor_of_another_shape_is_named_with_its_file_and_both_shapes(tmp_path):
    m = read(tmp_path, tie_word_embeddings=True)
    write_safetensors(tmp_path / "model.safetensors", {"model.norm.weight": np.ones(63, np.float32)})
    source, _ = source_of(Checkpoint(tmp_path), HF, m, dict(shapes(m)))
    with pytest.raises(ModelError, match=r"model.safetensors: model.norm.weight has shape \[63\], .* \[64\]$"):
        source("norm")
    with pytest.raises(ModelError, match=r"there is no tensor 'model.embed_tokens.weight'"):
        source("embed")
