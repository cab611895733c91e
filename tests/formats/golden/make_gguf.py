"""Wrote blocks.gguf: every type that gramme reads, with the values that gguf-py 0.19.0 gives them. Needs `gguf`.

    python make_gguf.py blocks.gguf
"""
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2],
          T.Q6_K: [208]}  # where a block's float16 numbers stand
rng = np.random.default_rng(4)
w = gguf.GGUFWriter(sys.argv[1], "llama")
w.add_uint8("a.uint8", 200)
w.add_int8("a.int8", -3)
w.add_uint16("a.uint16", 60000)
w.add_int16("a.int16", -300)
w.add_uint32("a.uint32", 4_000_000_000)
w.add_int32("a.int32", -70000)
w.add_float32("a.float32", 0.1)
w.add_uint64("a.uint64", 1 << 63)
w.add_int64("a.int64", -(1 << 40))
w.add_float64("a.float64", 0.1)
w.add_bool("a.bool", True)
w.add_string("a.string", "été 🙂")
w.add_array("a.strings", ["", "b", "日本"])
w.add_array("a.ints", [1, -2, 3])
w.add_array("a.floats", [0.5, -1.5])
for t, halves in HALVES.items():
    values, nbytes = gguf.GGML_QUANT_SIZES[t]
    raw = rng.integers(0, 256, (2, 512 // values // (8 if values == 32 else 2), nbytes), dtype=np.uint8)
    for at in halves:
        raw[..., at + 1] &= 0xBB  # an exponent that is neither infinite nor NaN
    w.add_tensor(t.name, raw.reshape(2, -1), raw_dtype=t)
    w.add_tensor(f"{t.name}.values", dequantize(raw.reshape(2, -1), t))
plain = rng.standard_normal((3, 7), dtype=np.float32)
w.add_tensor("F16", plain.astype(np.float16))
w.add_tensor("F16.values", plain.astype(np.float16).astype(np.float32))
bf16 = gguf.quants.quantize(plain, T.BF16)
w.add_tensor("BF16", bf16, raw_dtype=T.BF16)
w.add_tensor("BF16.values", dequantize(bf16, T.BF16))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
