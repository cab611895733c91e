"""A model that is quantised already can be quantised anew: what counts is the floats that its integers stand for."""
import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import packers
import pytest
import small
from small import MODEL

torch = pytest.importorskip("torch")

from gramme.config import EngineConfig  # noqa: E402
from gramme.formats.grouped import dense  # noqa: E402
from gramme.formats.safetensors import SafetensorsFile, write_safetensors  # noqa: E402
from gramme.models.load import shapes  # noqa: E402
from gramme.models.names import HF, their_name  # noqa: E402
from gramme.models.open import open_model  # noqa: E402

GROUP = 32


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def codes(shape, rng, act_order=False, bits=4, symmetric=False):
    """Random ones with the values of a model's matrix: about 1 / sqrt(columns) in size."""
    n, groups = shape[0], shape[1] // GROUP
    c = packers.random_codes(int(rng.integers(1 << 30)), n, groups, GROUP, bits, symmetric, act_order)
    middle = np.full_like(c.z, 1 << bits - 1)
    s = (rng.uniform(0.5, 1.5, (n, groups)) * shape[1] ** -0.5 / (1 << bits - 2)).astype(np.float16)
    return replace(c, s=s, z=middle if symmetric else np.clip(c.z, *((1 << bits) * np.array([3, 5]) // 8)))


def gptq(shape, rng):
    c = codes(shape, rng, act_order=True)
    return packers.gptq(c, 1), c.values()


def gptq8(shape, rng):
    c = codes(shape, rng, act_order=True, bits=8, symmetric=True)
    return packers.gptq(c, 2), c.values()


def awq(shape, rng):
    c = codes(shape, rng)
    return packers.awq(c), c.values()


def pack_quantized(shape, rng):
    c = codes(shape, rng)
    return packers.pack_quantized(c, False), c.values()


def int_quantized(shape, rng):
    tensors, _ = packers.int_quantized(int(rng.integers(1 << 30)), *shape, np.float16)
    s = np.full_like(tensors["weight_scale"], shape[1] ** -0.5 / 64)
    return tensors | {"weight_scale": s}, tensors["weight"] * s.astype(np.float32)


def float_quantized(shape, rng):
    weight = (rng.standard_normal(shape) * 16).astype(ml_dtypes.float8_e4m3fn)
    s = np.full((shape[0], 1), shape[1] ** -0.5 / 16, np.float16)
    return {"weight": weight, "weight_scale": s}, weight.astype(np.float32) * s.astype(np.float32)


def ct(form, **weights):
    return dict(quant_method="compressed-tensors", format=form, quantization_status="compressed", ignore=["lm_head"],
                config_groups={"group_0": dict(targets=["Linear"], weights=weights)})


SOURCES = {
    gptq: dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=True, sym=False, checkpoint_format="gptq"),
    gptq8: dict(quant_method="gptq", bits=8, group_size=GROUP, desc_act=True, sym=True, checkpoint_format="gptq_v2"),
    awq: dict(quant_method="awq", bits=4, group_size=GROUP, zero_point=True, version="gemm"),
    pack_quantized: ct("pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP),
    int_quantized: ct("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"),
    float_quantized: ct("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"),
}


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("method, form", [("gptq", "compressed-tensors"), ("awq", "gguf")])
def test_a_packed_source_is_the_floats_it_stands_for(tmp_path, quantise, make, method, form):
    packed, plain = small.save(_new(tmp_path / "packed")), small.save(_new(tmp_path / "plain"))
    file, rng = SafetensorsFile(plain / "model.safetensors"), np.random.default_rng(0)
    floats = {name: np.array(file.tensor(name)) for name in file.names}
    integers = dict(floats)
    for ours, shape in shapes(MODEL):
        name = their_name(ours, HF)
        if ours.startswith("layers.") and len(shape) == 2:
            tensors, floats[name] = make(shape, rng)
            del integers[name]
            integers |= {name.removesuffix("weight") + part: a for part, a in tensors.items()}
    write_safetensors(plain / "model.safetensors", floats)
    write_safetensors(packed / "model.safetensors", integers)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": SOURCES[make]}))
    made = []
    for model, out in ((packed, "a"), (plain, "b")):
        code, said, directory = quantise("--method", method, "--format", form, model=model, out=out)
        assert code == 0, said
        made.append((directory / ("model.gguf" if form == "gguf" else "model.safetensors")).read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq", "gguf"])
def test_a_head_that_the_source_has_in_integers_is_written_as_the_format_has_heads(tmp_path, quantise, form):
    m = replace(MODEL, tied_embeddings=False)
    directory = small.save(_new(tmp_path / "packed"), m)
    file = SafetensorsFile(directory / "model.safetensors")
    tensors = {name: np.array(file.tensor(name)) for name in file.names}
    shape = tensors.pop("lm_head.weight").shape
    packed, head = gptq(shape, np.random.default_rng(1))
    write_safetensors(directory / "model.safetensors", tensors | {f"lm_head.{part}": a for part, a in packed.items()})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": SOURCES[gptq]}))
    code, said, out = quantise("--method", "rtn", "--format", form, model=directory)
    assert code == 0, said
    back = open_model(EngineConfig(model=str(out / "model.gguf" if form == "gguf" else out)))
    a = back.source("head")
    if form == "gguf":
        assert a.bits == 8 and np.abs(dense(a) - head).max() < 0.01 * np.abs(head).max()
    else:
        np.testing.assert_array_equal(a, head.astype(np.float16))
    back.check_all_used()


def _new(directory):
    directory.mkdir()
    return directory
