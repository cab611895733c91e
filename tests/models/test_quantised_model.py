"""Integer files through the loader: every backend multiplies what the file says, in whatever order it is stored."""
import json

import ml_dtypes
import numpy as np
import pytest

from gramme import LLM
from gramme.config import EngineConfig, ModelError
from gramme.formats.grouped import Grouped, Reordered, dense
from gramme.formats.safetensors import SafetensorsFile, write_safetensors
from gramme.kernels.load import backend
from gramme.kernels.ops import Permuted
from gramme.kernels.present import available
from gramme.models.config import read_config
from gramme.models.load import _weight, build, shapes
from gramme.models.names import HF, their_name
from gramme.models.open import foretold, open_model
from gramme.quant.weights import Dense, Integers

BACKENDS = [name for name in available() if name in ("cpu", "reference")]
CONFIG = dict(
    architectures=["LlamaForCausalLM"], vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5)
FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": dict(num_bits=8, type="float", strategy="channel")}}}
GPTQ = dict(quant_method="gptq", bits=4, group_size=32, desc_act=True, sym=False, checkpoint_format="gptq_v2")


def grouped(rng, rows, columns, group, bits=4, order=None):
    scales = rng.uniform(0.5, 2, (rows, columns // group)).astype(np.float16).astype(np.float32)
    zeros = rng.integers(1, 1 << bits, scales.shape)
    w = Grouped(rng.integers(0, 1 << bits, (rows, columns), np.uint8), scales, scales * zeros, bits)
    return w if order is None else Reordered(w, order.astype(np.int32))


def multiply(kernels, w, x):
    return w.matmul(kernels.ops.quantise(x, w.act))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("group", [16, 32, 64, 96, 128, 384])
def test_groups_of_any_size_multiply_as_their_values(name, group):
    rng, kernels = np.random.default_rng(group), backend(name)
    w, x = grouped(rng, 48, 384, group), rng.standard_normal((3, 384), dtype=np.float32)
    weight = _weight([w], None, kernels, "float32", 128)
    want = x @ dense(w).T
    np.testing.assert_allclose(multiply(kernels, weight, x), want, atol=0.02 * np.abs(want).max())
    assert isinstance(weight, Integers) and weight.shape == (48, 384)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("orders", [[0], [0, 0, 0], [0, 1, 0], [0, None]])
def test_stored_order_does_not_matter(name, orders):
    """One order for all parts is the form of the activation; different ones are undone when loading."""
    rng, kernels = np.random.default_rng(7), backend(name)
    known = [rng.permutation(128), rng.permutation(128)]
    parts = [grouped(rng, 32, 128, 32, order=None if o is None else known[o]) for o in orders]
    x = rng.standard_normal((3, 128), dtype=np.float32)
    weight = _weight(parts, None, kernels, "float32", 128)
    want = x @ np.concatenate([dense(p) for p in parts]).T
    np.testing.assert_allclose(multiply(kernels, weight, x), want, atol=0.02 * np.abs(want).max())
    assert isinstance(weight.act, Permuted) == (len(set(orders)) == 1)
    values = np.concatenate([dense(p) for p in parts])
    np.testing.assert_allclose(weight.dense(), values, atol=np.abs(values).max() / 200)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("columns", [48, 64])
def test_an_order_of_groups_that_the_kernels_do_not_hold(name, columns):
    """16 columns share a scale: the weight is rounded again, or becomes floats, in its input's order."""
    rng, kernels = np.random.default_rng(2), backend(name)
    part = grouped(rng, 32, columns, 16, order=rng.permutation(columns))
    x = rng.standard_normal((3, columns), dtype=np.float32)
    weight, want = _weight([part], None, kernels, "float32", 128), x @ dense(part).T
    np.testing.assert_allclose(multiply(kernels, weight, x), want, atol=0.02 * np.abs(want).max())


def test_rows_of_no_whole_number_of_groups_become_floats():
    rng, kernels = np.random.default_rng(1), backend(BACKENDS[0])
    weight = _weight([grouped(rng, 16, 48, 16)], None, kernels, "int4", 128)
    assert isinstance(weight, Dense if kernels.group > 1 else Integers)


def act_order_model(directory, **more):
    """A GPTQ model whose q, k and v share an order, as one made from one Hessian does; returns its dense weights."""
    rng, tensors, values = np.random.default_rng(3), {}, {}
    (directory / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": GPTQ | more}))
    write_safetensors(directory / "model.safetensors", {})
    orders = {}
    for name, shape in shapes(read_config(directory)):
        theirs = their_name(name, HF)
        if len(shape) == 1 or name in ("embed", "head"):
            tensors[theirs] = values[name] = rng.standard_normal(shape).astype(np.float32) * 0.2 + (len(shape) == 1)
            continue
        layer, leaf = name.rsplit(".", 1)
        order = orders.setdefault((layer, leaf.translate(str.maketrans("kv", "qq"))), rng.permutation(shape[1]))
        w = grouped(rng, *shape, 32)
        w = w._replace(scales=w.scales * np.float32(2**-6), offsets=w.offsets * np.float32(2**-6))
        values[name] = dense(Reordered(w, order))
        module, inverse = theirs.removesuffix(".weight"), np.argsort(order)
        nibbles = w.codes[:, inverse].T.reshape(shape[1] // 8, 8, shape[0]).astype(np.uint32)
        zeros = np.rint(w.offsets / w.scales).astype(np.uint32).T.reshape(-1, shape[0] // 8, 8)
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        tensors |= {
            f"{module}.qweight": (nibbles << shifts[:, None]).sum(1, dtype=np.uint32).view(np.int32),
            f"{module}.qzeros": (zeros << shifts).sum(2, dtype=np.uint32).view(np.int32),
            f"{module}.scales": np.ascontiguousarray(w.scales.T.astype(np.float16)),
            f"{module}.g_idx": (inverse // 32).astype(np.int32)}
    write_safetensors(directory / "model.safetensors", tensors)
    return values


@pytest.mark.parametrize("name", BACKENDS)
def test_an_act_order_model_is_its_dense_weights(tmp_path, name):
    values = act_order_model(tmp_path)
    opened = open_model(EngineConfig(model=str(tmp_path)))
    for parameter, want in values.items():
        a = opened.source(parameter)
        np.testing.assert_array_equal(a if isinstance(a, np.ndarray) else dense(a), want)
    opened.check_all_used()
    kernels = backend(name)
    decoder = build(opened.config, opened.source, kernels, "float32", 64)
    x = np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)
    for part, names in (("qkv", "qkv"), ("o", "o"), ("gate_up", ("gate", "up"))):
        want = x @ np.concatenate([values[f"layers.1.{n}"] for n in names]).T
        got = multiply(kernels, getattr(decoder.layers[1], part), x)
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_float8_that_is_widened_is_said_at_every_start(tmp_path, capsys):
    """In one line; a file that is kept as it is says nothing."""
    values = act_order_model(tmp_path)
    LLM(str(tmp_path), skip_tokenizer_init=True, max_num_seqs=1).close()
    assert capsys.readouterr().err == ""
    tensors = {}
    for name, a in values.items():
        theirs = their_name(name, HF)
        if a.ndim == 1 or name in ("embed", "head"):
            tensors[theirs] = a
        else:
            tensors[theirs] = (a * 64).astype(ml_dtypes.float8_e4m3fn)
            tensors[theirs + "_scale"] = np.full((len(a), 1), 2**-6, np.float16)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": FP8}))
    LLM(str(tmp_path), skip_tokenizer_init=True, max_num_seqs=1).close()
    said = capsys.readouterr().err
    assert "float8" in said and "widened" in said and said.count("\n") == 1
    opened = open_model(EngineConfig(model=str(tmp_path)))
    want = tensors[their_name("layers.1.up", HF)].astype(np.float32) / 64
    np.testing.assert_array_equal(opened.source("layers.1.up"), want)


def test_tensors_without_a_place_and_without_a_partner(tmp_path):
    act_order_model(tmp_path)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    tensors = {n: np.array(file.tensor(n)) for n in file.names}
    q = "model.layers.0.self_attn.q_proj."

    def refused(changed, match):
        write_safetensors(tmp_path / "model.safetensors", changed)
        with pytest.raises(ModelError, match=match):
            opened = open_model(EngineConfig(model=str(tmp_path)))
            build(opened.config, opened.source, backend("reference"), "float32", 64)
            opened.check_all_used()

    refused({n: t for n, t in tensors.items() if n != q + "scales"}, f"tensor '{q}scales': is missing")
    refused({n: t for n, t in tensors.items() if n != q + "qweight"}, f"there is no tensor '{q}weight'")
    refused(tensors | {"model.layers.0.x.qweight": tensors[q + "qweight"]}, r"no place for model.layers.0.x.weight$")
    refused(tensors | {"model.layers.0.x.scales": tensors[q + "scales"]}, r"no place for model.layers.0.x.scales$")
    o = "model.layers.0.mlp.down_proj."
    swapped = {q + p: tensors[o + p] for p in ("qweight", "qzeros", "scales", "g_idx")}
    refused(tensors | swapped, r"q_proj.weight has shape \[64, 128\], the config says \[64, 64\]")


def ct(weights, form, ignore=("lm_head",), targets=("Linear",)):
    groups = {"group_0": {"targets": list(targets), "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": list(ignore), "config_groups": groups}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize("config, marker, plain", [
    (GPTQ, "qweight", ("embed", "head")), (GPTQ | {"sym": True, "bits": 8}, "qweight", ("embed", "head")),
    (GPTQ | {"lm_head": True}, "qweight", ("embed",)),
    (GPTQ | {"dynamic": {"-:.*down_proj": {}, r"+:.*layers\.1\..*": {"bits": 8}}}, "qweight",
     ("embed", "head", "layers.0.down", "layers.1.down")),
    (AWQ, "qweight", ("embed", "head")),
    (AWQ | {"modules_to_not_convert": ["v_proj"]}, "qweight", ("embed", "head", "layers.0.v", "layers.1.v")),
    (ct(INT4, "pack-quantized"), "weight_packed", ("embed", "head")),
    (ct(INT4 | {"symmetric": False}, "pack-quantized", ignore=()), "weight_packed", ("embed",)),
    (ct({"num_bits": 8, "strategy": "channel"}, "int-quantized"), "weight_scale", ("embed", "head")),
    (FP8, "weight_scale", ("embed", "head")),
    (ct(INT4, "pack-quantized", targets=("Linear", "re:.*embed_tokens$")), "weight_packed", ("head",)),
    (ct(INT4, "pack-quantized", (), ("re:.*(embed_tokens|lm_head|proj)$",)), "weight_packed", ()),
    (ct(INT4, "pack-quantized", ("lm_head", "re:.*embed.*"), ("Linear", "model.embed_tokens")), "weight_packed",
     ("embed", "head")),
])
def test_a_config_alone_foretells_what_the_headers_of_the_weights_say(tmp_path, config, marker, plain):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": config}))
    told = foretold(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    names = [(their_name(name, HF), len(shape) == 1 or name in plain) for name, shape in shapes(told)]
    write_safetensors(tmp_path / "model.safetensors", {
        name if floats else name.removesuffix("weight") + marker: np.zeros(0, np.float16) for name, floats in names})
    found = open_model(EngineConfig(model=str(tmp_path))).config
    assert (told.stored, told.notes) == (found.stored, found.notes)
    assert (found.stored.layers[0] > 0) == (config is not FP8) and told.notes
