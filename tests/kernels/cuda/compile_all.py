"""Compiles the kernels, with a 7B model's shapes, for a card that need not be there: python compile_all.py 86

Prints one line a kernel: name, shared bytes, what it was compiled for. Run with TRITON_INTERPRET=0.
"""
import sys

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from gramme.formats.grouped import Grouped
from gramme.kernels.cuda import attention, heads, matmul, norm, sample
from gramme.kernels.cuda.packing import pack
from gramme.kernels.ops import KV, Edits, Sampling, Step
from gramme.plan.gpu_memory import MANY_TILE, few_tile, fixed_tile

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
         torch.int32: "*i32", torch.int8: "*i8", torch.uint8: "*u8"}
T, H, HK, DH, D, F, S = 64, 32, 8, 128, 4096, 14336, 16
PROCESSORS = 82


def compiler(target):
    def compile_kernel(kernel, grid, *args, **meta):
        signature, constants, attributes = {}, {}, {}
        for i, (p, a) in enumerate(zip(kernel.params, args, strict=True)):
            if p.is_constexpr or a is None:
                signature[p.name], constants[(i,)] = "constexpr", a
            else:
                signature[p.name] = TYPES[a.dtype] if torch.is_tensor(a) else "i32" if isinstance(a, int) else "fp32"
            if torch.is_tensor(a) or (isinstance(a, int) and a % 16 == 0 and (i,) not in constants):
                attributes[(i,)] = [["tt.divisibility", 16]]
        built = triton_compile(ASTSource(kernel, signature, constants, attributes), target=target, options=meta)
        print(kernel.fn.__name__, built.metadata.shared, constants, flush=True)

    return compile_kernel


def empty(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_attention():
    ints = lambda *shape: empty(*shape, dtype=torch.int32)
    y, table, gain = empty(T, H + 2 * HK, DH), empty(4096, DH, dtype=torch.float32), empty(DH, dtype=torch.float32)
    made = lambda x: heads.rope(heads.head_norm(x, gain, 1e-5), table, ints(T))
    for dtype, max_row, fixed in (("float16", 1, False), ("float16", 64, False), ("float16", 64, True),
                                  ("float8_e4m3fn", 1, False), ("int8", 64, False)):
        scale = empty(99, HK, S) if dtype == "int8" else None
        pages = empty(99, HK, S, DH, dtype=getattr(torch, dtype))
        step = Step(None, ints(T), ints(T), ints(T + 1), ints(T), ints(T, 512), None, max_row, 8192)
        kv = KV(pages, pages, scale, scale)
        q = heads.place(made(y[:, :H]), made(y[:, H : H + HK]), y[:, H + HK :], kv, step.slots)
        attention.attend_pages(q, kv, step, 4096, empty(9, dtype=torch.float32), ints(9), PROCESSORS, fixed)


def compile_products():
    x = empty(T, D)
    scratch = empty(64 << 20, dtype=torch.float32), empty(9, dtype=torch.int32)
    weight = lambda bits: pack(Grouped(np.zeros((256, D), np.uint8), np.ones((256, 32), np.float32),
                                       np.full((256, 32), 3.0, np.float32), bits), "cpu")
    quantised = norm.add_norm(x, None, empty(D, dtype=torch.float32), 1e-5, "int8/128")[0]
    for tokens, gated in ((1, False), (16, True), (64, True)):
        tile = few_tile(tokens, 2 * F, D, gated, PROCESSORS)
        matmul.tile_product(x, weight(4), None, gated, tile, False, *scratch)
        matmul.tile_product(quantised, weight(8), None, gated, tile, False, *scratch)
    matmul.tile_product(x, weight(4), None, True, few_tile(16, F, D, True, PROCESSORS, 128), False, *scratch)
    for half in (False, True):
        matmul.tile_product(x, weight(4), None, True, MANY_TILE, half, *scratch)
    matmul.tile_product(quantised, weight(8), None, True, MANY_TILE, False, *scratch)
    matmul.tile_product(x.bfloat16(), empty(256, D).bfloat16(), None, True, fixed_tile(F, D, True, PROCESSORS), False,
                        *scratch)
    matmul.dense_product(x, weight(4), None, scratch[0])


def compile_the_rest():
    norm.add_norm(empty(T, D), empty(T, D), empty(D, dtype=torch.float32), 1e-5, "float")
    norm.swiglu(empty(T, 2 * F), "int8/32")
    norm.swiglu(empty(T, 2 * F), "float")
    column = lambda dtype: empty(T, dtype=dtype)
    ints, floats = empty(9, dtype=torch.int32), empty(9, dtype=torch.float32)
    sample.sample(empty(T, 32000), Sampling(
        column(torch.float32), column(torch.float32), column(torch.float32), column(torch.int32), column(torch.float64),
        Edits(ints, ints, floats, floats, floats), empty(T, 1000, dtype=torch.int32)))


if __name__ == "__main__":
    for module in (attention, heads, matmul, norm, sample):
        module.launch = compiler(GPUTarget("cuda", int(sys.argv[1]), 32))
    compile_attention()
    compile_products()
    compile_the_rest()
