"""Wrote packed.safetensors: matrices as GPTQModel 7.7.0, AutoAWQ 0.2.9 and compressed-tensors 0.20.0 read them.

    python make_packed.py packed.safetensors AUTOAWQ/awq/utils/packing_utils.py

Names are KIND.part, with KIND.values (N, K) as the tool itself dequantises them. Needs those packages and torch.
"""
import importlib.util
import sys
from types import SimpleNamespace

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from gptqmodel.nn_modules.qlinear import PackableQuantLinear
from safetensors.torch import save_file

N, K, GROUP = 16, 64, 32
torch.manual_seed(4)
out = {}


def words(*shape):
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64).to(torch.int32)


def add(kind, values, **parts):
    out.update({f"{kind}.{part}": t.contiguous() for part, t in parts.items()})
    out[f"{kind}.values"] = values.to(torch.float32).contiguous()


def gptq(bits, g_idx):
    """Version 2: zero points as they are. GPTQModel brings version 1 to it by adding 1 to every field."""
    parts = dict(qweight=words(K * bits // 32, N), qzeros=words(K // GROUP, N * bits // 32),
                 scales=torch.rand(K // GROUP, N, dtype=torch.float16) + 0.5, g_idx=g_idx.to(torch.int32))
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    layer = SimpleNamespace(
        planar=False, bits=bits, pack_factor=32 // bits, maxq=(1 << bits) - 1, dequant_dtype=torch.int16,
        in_features=K, wf_unsqueeze_zero=shifts[None, None, :], wf_unsqueeze_neg_one=shifts[None, :, None],
        _init_wf_unsqueeze_buffers=lambda: None, **(parts | {"scales": parts["scales"].float()}))
    layer._dequantize_from_codes = lambda *codes, **more: PackableQuantLinear._dequantize_from_codes(
        layer, *codes, **more)
    return PackableQuantLinear.dequantize_weight(layer).T, parts


for bits in (4, 8):
    for name, g_idx in (("", torch.arange(K) // GROUP), ("_act_order", torch.randperm(K) // GROUP)):
        values, parts = gptq(bits, g_idx)
        add(f"gptq{bits}{name}", values, **parts)

spec = importlib.util.spec_from_file_location("packing_utils", sys.argv[2])
autoawq = importlib.util.module_from_spec(spec)
spec.loader.exec_module(autoawq)
parts = dict(qweight=words(K, N // 8), qzeros=words(K // GROUP, N // 8),
             scales=torch.rand(K // GROUP, N, dtype=torch.float16) + 0.5)
values = autoawq.dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"].float(), 4, GROUP).T
add("awq", values, **parts)

KINDS = {
    "pack4": ("pack-quantized", dict(num_bits=4, symmetric=True, strategy="group", group_size=GROUP)),
    "pack4_asymmetric": ("pack-quantized", dict(num_bits=4, symmetric=False, strategy="group", group_size=GROUP)),
    "pack8": ("pack-quantized", dict(num_bits=8, symmetric=True, strategy="channel")),
    "int8": ("int-quantized", dict(num_bits=8, symmetric=True, strategy="channel")),
    "fp8": ("float-quantized", dict(num_bits=8, type="float", symmetric=True, strategy="channel")),
}
for kind, (form, args) in KINDS.items():
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    weight = torch.randn(N, K)
    groups = K // GROUP if args["strategy"] == "group" else 1
    most = 448 if kind == "fp8" else (1 << args["num_bits"] - 1) - 0.5
    scale = (weight.reshape(N, groups, -1).abs().amax(-1) / most).half().float()  # as real files have them
    state = dict(weight=weight, weight_scale=scale)
    if not args["symmetric"]:
        state["weight_zero_point"] = torch.randint(-8, 8, (N, groups), dtype=torch.int8)
    packed = compressor.compress(state, scheme)
    add(kind, compressor.decompress(packed, scheme)["weight"], **packed)

save_file(out, sys.argv[1])
