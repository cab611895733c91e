"""transformers with compressed-tensors, and ours, see the same weights: the same logits, difference 0.

Runs where compressed-tensors is installed: `make test-interchange` makes such an environment.
"""
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.base import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from gramme.formats.grouped import dense  # noqa: E402
from gramme.formats.quantised import open_checkpoint  # noqa: E402

CONFIG = dict(vocab_size=199, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1, tie_word_embeddings=False)
KINDS = {
    "pack4-32": ("pack-quantized", dict(num_bits=4, symmetric=True, strategy="group", group_size=32)),
    "pack4-128": ("pack-quantized", dict(num_bits=4, symmetric=True, strategy="group", group_size=128)),
    "pack8": ("pack-quantized", dict(num_bits=8, symmetric=True, strategy="group", group_size=32)),
    "fp8": ("float-quantized", dict(num_bits=8, type="float", symmetric=True, strategy="channel")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_same(tmp_path, kind):
    form, args = KINDS[kind]
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors |= compressed(tensors.pop(name), name.removesuffix("weight"), form, args)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    ours = open_checkpoint(tmp_path)
    values = {n: ours.tensor(n) for n in ours.names}
    model.load_state_dict({n: torch.from_numpy(np.array(a if isinstance(a, np.ndarray) else dense(a)))
                           for n, a in values.items()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(40)[None] * 3
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids).logits).abs().max() == 0


def compressed(weight, prefix, form, args):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    groups = weight.shape[1] // args["group_size"] if "group_size" in args else 1
    most = 448 if form == "float-quantized" else (1 << args["num_bits"] - 1) - 0.5
    scale = weight.reshape(len(weight), groups, -1).abs().amax(-1) / most
    state = BaseCompressor.get_value_from_registry(form).compress(dict(weight=weight, weight_scale=scale), scheme)
    return {prefix + part: t.contiguous() for part, t in state.items()}
