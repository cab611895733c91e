"""Files of `gramme quantize` in other projects' hands: the same weights, to the last bit.

Runs where those readers are installed: `make test-interchange` makes such an environment.
"""
import importlib.util
import json
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for reader in ("compressed_tensors", "gguf", "awq", "gptqmodel"):
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed", allow_module_level=True)

import gguf  # noqa: E402
from compressed_tensors.compressors.base import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from gguf.quants import dequantize  # noqa: E402

from gramme.cli.main import run as gramme  # noqa: E402
from gramme.formats.gguf import GGUFFile  # noqa: E402
from gramme.formats.grouped import Grouped, dense  # noqa: E402
from gramme.formats.quantised import open_checkpoint  # noqa: E402
from gramme.formats.safetensors import SafetensorsFile  # noqa: E402
from gramme.quantize.recipe import FORMATS  # noqa: E402

GROUP = 32
MATRICES = 7 * 3  # of three layers


def part_of(package, module, *bare):
    """A module of a package without what the `__init__` of the packages above it would import."""
    for name in (package, *bare):
        stub = types.ModuleType(name)
        stub.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = stub
    return importlib.import_module(module)


read_gptq = part_of("gptqmodel", "gptqmodel.utils.model_dequant", "gptqmodel.quantization").convert_gptq_file
read_awq = part_of("awq", "awq.utils.packing_utils", "awq.utils").dequantize_gemm

@pytest.fixture(scope="module", params=[4, 8], ids=["4 bits", "8 bits"])
def made(request, small_model, tmp_path_factory):
    """(format -> directory, bits) of one run of the command."""
    torch.set_num_threads(1)
    d, bits = tmp_path_factory.mktemp("made"), request.param
    (d / "a.txt").write_text("Le chat dort. The cat sleeps. " * 30)
    formats = [f for f in FORMATS if (f, bits) != ("awq", 8)]
    assert gramme(["quantize", str(small_model), str(d / "out"), "--format", ",".join(formats), "--tokens=512",
                   "--window=64", "--group", str(GROUP), "--bits", str(bits), "--threads=1", "--max-kl=9",
                   "--max-ppl-increase=9", f"--check-text=x:{d}/a.txt"]) == 0
    return {f: d / f"out-{f}" for f in formats}, bits


def ours(directory):
    """Name -> (N, K) float32, of the quantised matrices as our reader sees them."""
    checkpoint = open_checkpoint(directory)
    found = {name: checkpoint.tensor(name) for name in checkpoint.names}
    return {name: dense(a) for name, a in found.items() if isinstance(a, Grouped)}


def parts(directory):
    """Module -> suffix -> torch tensor."""
    file, out = SafetensorsFile(directory / "model.safetensors"), {}
    for name in file.names:
        module, _, part = name.rpartition(".")
        out.setdefault(module, {})[part] = torch.from_numpy(np.array(file.tensor(name)))
    return out


def same(mine, theirs):
    assert len(mine) == MATRICES
    for name, a in mine.items():
        np.testing.assert_array_equal(theirs[name], a, err_msg=name)


def test_compressed_tensors(made):
    directories, bits = made
    directory, theirs = directories["compressed-tensors"], {}
    args = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for module, tensors in parts(directory).items():
        if "weight_packed" in tensors:
            state = tensors | {"weight_scale": tensors["weight_scale"].float()}
            theirs[f"{module}.weight"] = compressor.decompress(state, scheme)["weight"].numpy()
    same(ours(directory), theirs)


@pytest.mark.filterwarnings("ignore")
def test_transformers_logits(made):
    """Difference 0 from transformers' own model on the weights that our reader sees."""
    directory = made[0]["compressed-tensors"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    checkpoint = open_checkpoint(directory)
    values = {name: checkpoint.tensor(name) for name in checkpoint.names}
    values = {name: dense(a) if isinstance(a, Grouped) else np.array(a, np.float32) for name, a in values.items()}
    missing = plain.load_state_dict({k: torch.from_numpy(a) for k, a in values.items()}, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys
    ids = torch.arange(60)[None] * 3
    with torch.no_grad():
        assert (theirs(ids).logits - plain(ids).logits).abs().max() == 0


def test_gptqmodel(made):
    directory = made[0]["gptq"]
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    theirs = read_gptq(directory / "model.safetensors", torch.float32, config, "cpu")
    same(ours(directory), {name: a.numpy() for name, a in theirs.items()})


def test_autoawq(made):
    if "awq" not in made[0]:
        pytest.skip("AWQ files have 4 bits")
    directory = made[0]["awq"]
    theirs = {f"{module}.weight": read_awq(t["qweight"], t["qzeros"], t["scales"].float(), 4, GROUP).T.numpy()
              for module, t in parts(directory).items() if "qweight" in t}
    same(ours(directory), theirs)


def test_gguf_py(made):
    path = made[0]["gguf"] / "model.gguf"
    mine, theirs = GGUFFile(path), gguf.GGUFReader(path).tensors
    assert len(theirs) == len(mine.names)
    quantised = 0
    for t in theirs:
        a = mine.tensor(t.name)
        quantised += isinstance(a, Grouped)
        values = dense(a) if isinstance(a, Grouped) else np.array(a, np.float32)
        np.testing.assert_array_equal(dequantize(t.data, t.tensor_type).reshape(values.shape), values, err_msg=t.name)
    assert quantised >= MATRICES
