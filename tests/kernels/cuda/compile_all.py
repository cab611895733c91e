"""Compiles the kernels, with a 7B model's shapes, for a card that need not be there: python compile_all.py 86

Prints one line a kernel: name, shared bytes, registers and bytes of stack of a thread, what it was compiled for. Run
with TRITON_INTERPRET=0.
"""
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from gramme.formats.grouped import Grouped
from gramme.kernels.cuda import attention, heads, matmul, norm, sample
from gramme.kernels.cuda.packing import pack
from gramme.kernels.ops import KV, Edits, Sampling, Step
from gramme.plan.gpu_memory import few_tile, fixed_tile, many_tile

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
            aligned = isinstance(a, int) and a % 16 == 0 and not p.do_not_specialize
            if torch.is_tensor(a) or (aligned and (i,) not in constants):
                attributes[(i,)] = [["tt.divisibility", 16]]
        built = triton_compile(ASTSource(kernel, signature, constants, attributes), target=target, options=meta)
        registers, stack = resources(built.asm["cubin"])
        named = {kernel.params[i].name: v for (i,), v in constants.items()}
        print(kernel.fn.__name__, built.metadata.shared, registers, stack, meta, named, flush=True)

    return compile_kernel


def resources(cubin):
    """Registers and bytes of stack of a thread; a large stack is registers that did not suffice."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name], check=True,
                              capture_output=True, text=True).stdout
    return re.search(r"REG:(\d+) STACK:(\d+)", said).groups()


def empty(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_attention():
    ints = lambda *shape: empty(*shape, dtype=torch.int32)
    y, table, gain = empty(T, H + 2 * HK, DH), empty(4096, DH, dtype=torch.float32), empty(DH, dtype=torch.float32)
    made = lambda x: heads.rope(heads.head_norm(x, gain, 1e-5), table, ints(T))
    for dtype, max_row, fixed, form in (
            ("float16", 1, False, "float"), ("float16", 1, False, "int8/128"), ("float16", 64, False, "float"),
            ("float16", 64, True, "float"), ("float8_e4m3fn", 1, False, "float"), ("int8", 64, False, "int8/32")):
        scale = empty(99, HK, S) if dtype == "int8" else None
        pages = empty(99, HK, S, DH, dtype=getattr(torch, dtype))
        step = Step(None, ints(T), ints(T), ints(T + 1), ints(T), ints(T, 512), None, max_row, 8192)
        kv = KV(pages, pages, scale, scale)
        q = heads.place(made(y[:, :H]), made(y[:, H : H + HK]), y[:, H + HK :], kv, step.slots)
        attention.attend_pages(q, kv, step, 4096, empty(64 << 20, dtype=torch.float32), ints(9999), PROCESSORS, fixed,
                               form)


def compile_products():
    x, scratch = empty(T, D), (empty(64 << 20, dtype=torch.float32), empty(9999, dtype=torch.int32))
    weight = lambda bits: pack(Grouped(np.zeros((256, D), np.uint8), np.ones((256, 32), np.float32),
                                       np.full((256, 32), 3.0, np.float32), bits), "cpu")
    quantised = norm.add_norm(x, None, empty(D, dtype=torch.float32), 1e-5, "int8/128")[0]
    small = norm.add_norm(x, None, empty(D, dtype=torch.float32), 1e-5, "int8/32")[0]
    few = lambda tokens, gated, width=64: few_tile(tokens, 2 * F, D, gated, PROCESSORS, width)
    for tokens, gated, width in ((1, False, 64), (16, True, 64), (16, True, 128), (64, True, 64),
                                 (64, False, 128)):
        matmul.tile_product(x, weight(4), None, gated, few(tokens, gated, width), False, *scratch)
    for gated in (False, True):
        matmul.tile_product(quantised, weight(8), None, gated, few(16, gated), False, *scratch, "int8/32")
        matmul.tile_product(x, empty(256, D), None, gated, few(64, gated), False, *scratch)
        matmul.tile_product(small, weight(8), None, gated, many_tile(gated), False, *scratch, "int8/32")
        matmul.tile_product(x, empty(256, D), None, gated, many_tile(gated), False, *scratch)
        for half in (False, True):
            matmul.tile_product(x, weight(4), None, gated, many_tile(gated), half, *scratch)
    matmul.tile_product(quantised, weight(8), None, True, few(64, True), False, *scratch, "int8/32")
    matmul.tile_product(x, weight(4), None, True, few(1, True), False, *scratch, "float", empty(256, dtype=torch.int32))
    matmul.tile_product(x.bfloat16(), empty(256, D).bfloat16(), None, True, fixed_tile(F, D, True, PROCESSORS), False,
                        *scratch)
    matmul.dense_product(x, weight(4), None, scratch[0])
    matmul.float_rows(weight(8), empty(T, D), empty(T, dtype=torch.int32))


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
