"""A GGUF file is the model that its safetensors directory is: same config, same tensors, same answers."""
import json
from dataclasses import replace

import numpy as np
import pytest
from ggufs import gguf

from gramme import LLM, SamplingParams
from gramme.cli.main import run
from gramme.config import EngineConfig, ModelError, Rope
from gramme.formats import gguf_blocks
from gramme.formats.grouped import dense
from gramme.formats.safetensors import write_safetensors
from gramme.kernels.load import backend
from gramme.models.config import read_config
from gramme.models.load import build, shapes
from gramme.models.names import GGUF, HF
from gramme.models.open import open_model
from gramme.models.rope import rope_table
from gramme.plan import cost

WIDTH, LAYERS, HEADS, KV, FF = 64, 2, 4, 2, 96
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefgh"]
TYPES = np.array([2, 3, 3] + [6] * 256 + [1] * 9, np.int32)
TOKENIZER = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.scores": -np.arange(len(PIECES), dtype=np.float32), "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2, "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def keys(arch, **more):
    own = {"block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": FF, "context_length": 256,
           "attention.head_count": HEADS, "attention.head_count_kv": KV, "rope.freq_base": 5000.0,
           "attention.layer_norm_rms_epsilon": 2.0**-17, "attention.key_length": 16, "attention.value_length": 16}
    out = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in own.items()} | TOKENIZER | more
    return {k: v for k, v in out.items() if v is not None}


def pair(tmp_path, arch, tied=False, factors=None):
    """The same random model as a directory and as a file."""
    config = {
        "architectures": [CLASSES[arch]], "vocab_size": len(PIECES), "hidden_size": WIDTH, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": 16,
        "rms_norm_eps": 2.0**-17, "rope_theta": 5000.0, "max_position_embeddings": 256, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": tied, "attention_bias": arch == "llama"}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "hf" / "model.safetensors", {})
    rng, hf, gg = np.random.default_rng(0), {}, {}
    for name, shape in shapes(read_config(tmp_path / "hf")):
        a = rng.standard_normal(shape).astype(np.float32) * 0.2 + (name.endswith("norm"))
        hf[theirs(name, HF)] = a
        gg[theirs(name, GGUF)] = a
        if arch == "llama" and (".q" in name or ".k" in name):  # the converter's order: pairs (i, i + 8) stand together
            heads = HEADS if ".q" in name else KV
            gg[theirs(name, GGUF)] = np.ascontiguousarray(a.reshape(heads, 2, 8, -1).swapaxes(1, 2)).reshape(shape)
    if factors is not None:
        gg["rope_freqs.weight"] = np.array(factors, np.float32)
    write_safetensors(tmp_path / "hf" / "model.safetensors", hf)
    (tmp_path / "m.gguf").write_bytes(gguf(keys(arch), gg))
    return str(tmp_path / "hf"), str(tmp_path / "m.gguf")


def theirs(name, layout):
    at, leaf = "", name
    if name.startswith("layers."):
        _, layer, leaf = name.split(".", 2)
        at = f"{layout.layer}{layer}."
    leaf, _, bias = leaf.partition(".")
    return f"{at}{layout.names[leaf]}.{bias or 'weight'}"


@pytest.mark.parametrize("arch, tied", [("llama", False), ("llama", True), ("qwen2", False), ("qwen3", True)])
def test_file_and_directory_are_one_model(tmp_path, arch, tied):
    one, other = (open_model(EngineConfig(model=m)) for m in pair(tmp_path, arch, tied))
    assert one.config == other.config
    for name, shape in shapes(one.config):
        np.testing.assert_array_equal(one.source(name), other.source(name), err_msg=name)
        assert one.source(name).shape == shape
    other.check_all_used()


def test_rope_factors_divide_the_frequencies(tmp_path):
    """llama3's rule, written out by a converter, gives llama3's table."""
    llama3 = Rope(theta=5000.0, kind="llama3", factor=8.0, original_positions=64, high_freq_factor=4.0)
    plain = rope_table(Rope(theta=5000.0), 16, 2)[1]
    angle = lambda table: np.arctan2(table[8:].astype(float), table[:8])
    factors = angle(plain) / angle(rope_table(llama3, 16, 2)[1])
    m = open_model(EngineConfig(model=pair(tmp_path, "llama", factors=factors)[1])).config
    np.testing.assert_allclose(rope_table(m.rope, 16, 100), rope_table(llama3, 16, 100), atol=2e-5)
    assert max(m.rope.factors) > 7.9 and min(m.rope.factors) == pytest.approx(1)


def tiny(tmp_path, metadata=None, **tensors):
    """A llama of integer matrices; `tensors` are laid over it."""
    rng = np.random.default_rng(1)
    sizes = {"token_embd": (len(PIECES), WIDTH), "output": (len(PIECES), WIDTH)}
    for i in range(LAYERS):
        sizes |= {f"blk.{i}.{n}": s for n, s in (
            ("attn_q", (64, 64)), ("attn_k", (32, 64)), ("attn_v", (32, 64)), ("attn_output", (64, 64)),
            ("ffn_gate", (FF, 64)), ("ffn_up", (FF, 64)), ("ffn_down", (64, FF)))}
    made = {f"{n}.weight": q8_0(rng.standard_normal(s) * s[1] ** -0.5) for n, s in sizes.items()}
    made |= {f"blk.{i}.{n}.weight": np.ones(64, np.float32) for i in range(LAYERS) for n in ("attn_norm", "ffn_norm")}
    made |= {"output_norm.weight": np.ones(64, np.float32)} | tensors
    path = tmp_path / "tiny-Q8_0.gguf"
    path.write_bytes(gguf(metadata or keys("llama"), {k: v for k, v in made.items() if v is not None}))
    return str(path)


def q8_0(a):
    blocks = a.reshape(-1, 32)
    d = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / d).astype(np.int8)
    return 8, a.shape, np.concatenate([d.view(np.uint8), codes.view(np.uint8)], 1).tobytes()


def answer(path, prompt, params):
    llm = LLM(path, dtype="float32")
    try:
        return llm.generate(prompt, params)[0]
    finally:
        llm.close()


def test_a_file_answers_like_its_widened_weights(tmp_path):
    path = tiny(tmp_path)
    opened = open_model(EngineConfig(model=path))
    prompt, params = "abc def", SamplingParams(temperature=0, max_tokens=8, logprobs=5)
    out = answer(path, prompt, params)
    assert out.prompt_token_ids[0] == 1 and len(out.outputs[0].token_ids) == 8
    wide = {theirs(n, GGUF): dense(a) if a.__class__.__name__ == "Grouped" else a
            for n, a in ((n, opened.source(n)) for n, _ in shapes(opened.config))}
    for i in range(LAYERS):
        for n, heads in (("q", HEADS), ("k", KV)):
            a = wide[f"blk.{i}.attn_{n}.weight"]
            wide[f"blk.{i}.attn_{n}.weight"] = np.ascontiguousarray(
                a.reshape(heads, 2, 8, -1).swapaxes(1, 2)).reshape(a.shape)
    (tmp_path / "wide.gguf").write_bytes(gguf(keys("llama"), wide))
    want = answer(str(tmp_path / "wide.gguf"), prompt, params)
    assert out.outputs[0].token_ids[0] == want.outputs[0].token_ids[0]
    for token, score in want.outputs[0].logprobs[0].items():
        assert abs(out.outputs[0].logprobs[0][token].logprob - score.logprob) < 0.1  # 8-bit activations


def test_run_and_show(tmp_path, capsys):
    path = tiny(tmp_path)
    assert run(["run", path, "-p", "abc", "-n", "5", "--temperature", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["completion_tokens"] == 5 and record["prompt_tokens"] == 4
    assert run(["show", path, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["model"]
    assert (shown["family"], shown["layers"], shown["vocab_size"], shown["eos_token_ids"]) == ("llama", 2, 268, [2])


def test_sampling_defaults_and_ends(tmp_path):
    more = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "tokenizer.ggml.eot_token_id": 5}
    metadata = keys("llama", **more)
    metadata["tokenizer.ggml.tokens"] = [*PIECES[:-1], "<|im_end|>"]
    metadata["tokenizer.ggml.token_type"] = np.append(TYPES[:-1], np.int32(3))
    opened = open_model(EngineConfig(model=tiny(tmp_path, metadata)))
    assert opened.config.eos_token_ids == (2, 5, len(PIECES) - 1)
    assert (opened.defaults.temperature, opened.defaults.top_k, opened.defaults.min_p) == (0.5, 7, None)
    opened = open_model(EngineConfig(model=tiny(tmp_path, metadata), generation_config="none"))
    assert opened.defaults.temperature is None


@pytest.mark.parametrize("change, match", [
    ({"general.architecture": "gemma3"}, "'gemma3' is not supported; there are: llama, qwen2, qwen3"),
    ({"general.architecture": None}, "general.architecture None is not supported"),
    ({"split.count": 3}, "split.count must be 1: files in parts are not read"),
    ({"llama.expert_count": 8}, "llama.expert_count must be 0: experts are not supported yet"),
    ({"llama.block_count": 0}, "llama.block_count must be an integer from 1 to 1024, not 0"),
    ({"llama.block_count": 2.0}, "llama.block_count must be an integer"),
    ({"llama.embedding_length": None}, "llama.embedding_length is missing"),
    ({"llama.embedding_length": 32}, r"token_embd.weight has shape \[268, 64\], its width should be 32"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count must be"),
    ({"llama.attention.head_count_kv": 3}, "llama.attention.head_count_kv must be a divisor of the head count 4"),
    ({"llama.attention.head_count_kv": np.array([2, 4], np.int32)}, "must be the same for every layer"),
    ({"llama.attention.key_length": 15, "llama.attention.value_length": 15}, "llama.attention.key_length must be even"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length must be the size of a head, 16"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count must be the size of a head"),
    ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base must be a number"),
    ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type must be none, linear or yarn"),
    ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.factor is missing"),
    ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "layer_norm_rms_epsilon must be a number above 0"),
    ({"llama.context_length": 1 << 31}, "llama.context_length must be an integer from 1 to 16777216, not 2147483648"),
    ({"tokenizer.ggml.tokens": [str(i) for i in range(300)]}, "has 300 tokens, token_embd.weight 268 rows"),
    ({"tokenizer.ggml.eos_token_id": "x"}, "tokenizer.ggml.eos_token_id must be an integer"),
])
def test_metadata_that_cannot_be(tmp_path, change, match):
    with pytest.raises(ModelError, match=f"^tiny-Q8_0.gguf: .*{match}") as caught:
        open_model(EngineConfig(model=tiny(tmp_path, keys("llama", **change))))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_tensors_that_are_missing_extra_or_of_another_shape(tmp_path, capsys):
    bad = {"blk.1.ffn_up.weight": (None, "there is no tensor 'blk.1.ffn_up.weight'"),
           "blk.1.attn_norm.weight": (np.ones(32, np.float32), r"gguf: blk.1.attn_norm.weight has shape \[32\]"),
           "blk.0.attn_k.weight": (q8_0(np.ones((64, 64))), r"gguf: blk.0.attn_k.weight has shape \[64, 64\], the"),
           "blk.0.ffn_norm.weight": (q8_0(np.ones((1, 64))), r"gguf: blk.0.ffn_norm.weight has shape \[1, 64\]"),
           "blk.7.ffn_up.weight": (np.ones(3, np.float32), "no place for blk.7.ffn_up.weight"),
           "token_embd.weight": (None, "there is no tensor 'token_embd.weight'"),
           "rope_freqs.weight": (np.zeros(8, np.float32), "rope_freqs.weight must be 8 numbers above 0")}
    for name, (tensor, match) in bad.items():
        with pytest.raises(ModelError, match=match):
            LLM(tiny(tmp_path, **{name: tensor}), skip_tokenizer_init=True)
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    assert run(["run", str(tmp_path / "x.gguf"), "-p", "a"]) == 2
    assert capsys.readouterr().err == ("gramme: x.gguf is a pickle, which can run code when read; convert it to "
                                       "safetensors\n")


@pytest.mark.parametrize("kinds", ["Q8_0", "Q4_0 Q6_K", "Q4_K", "Q5_1 F16", "Q4_0 F32"])
def test_planned_bytes_are_counted_bytes(tmp_path, capsys, kinds):
    """Also where matrices that are multiplied as one are of two types, or one of them is of floats. What kernels do not
    hold as it is stored is said at every start, and nothing else."""
    numbers = {t.name: (n, t) for n, t in gguf_blocks.TYPES.items()}
    m = open_model(EngineConfig(model=tiny(tmp_path))).config
    wide = replace(m, width=256, heads=16, kv_heads=8, ff_width=512)
    tensors, rng = {}, np.random.default_rng(0)
    for i, (name, shape) in enumerate(shapes(wide)):
        kind = kinds.split()[i % len(kinds.split())]
        number, t = numbers["F32" if len(shape) == 1 else kind]
        raw = rng.integers(0, 40, np.prod(shape) // t.values * t.nbytes, np.uint8).tobytes()
        tensors[theirs(name, GGUF)] = (number, shape, raw)
    path = tmp_path / "wide.gguf"
    path.write_bytes(gguf(keys("llama", **{
        "llama.embedding_length": 256, "llama.attention.head_count": 16, "llama.attention.head_count_kv": 8,
        "llama.feed_forward_length": 512}), tensors))
    opened = open_model(EngineConfig(model=str(path)))
    decoder = build(opened.config, opened.source, backend("reference"), "float32", 64)
    weights = [decoder.embed, decoder.head, *(getattr(layer, n) for layer in decoder.layers
                                              for n in ("qkv", "o", "gate_up", "down"))]
    counted = sum(w.nbytes for w in weights) + decoder.norm.nbytes
    counted += sum(layer.attn_norm.nbytes + layer.mlp_norm.nbytes for layer in decoder.layers)
    assert cost.weights(opened.config, "float32").total == counted
    LLM(str(path), skip_tokenizer_init=True, max_num_seqs=1).close()
    said = capsys.readouterr().err
    assert ("Q6_K" in said) == ("Q6_K" in kinds) and said.count("\n") == ("Q6_K" in kinds)
