"""Times the matrix products of the CPU kernels: GB/s of weights, Gop/s, on the layers of known shapes.

    python bench/kernels/matmul.py [--threads 2] [--level avx2] [--form int4] [--shape 4096x14336] [--tokens 1,4,8,256]
"""
import argparse
import os
import statistics
import time

import numpy as np


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--level", default="")
    p.add_argument("--form", default="int4", choices=("int4", "int8", "float32", "bfloat16"))
    p.add_argument("--shape", default="2048x11264", help="columns x rows")
    p.add_argument("--group", type=int, default=32)
    p.add_argument("--tokens", default="1,2,4,8,16,64,256")
    a = p.parse_args()
    if a.level:
        os.environ["GRAMME_CPU_LEVEL"] = a.level
    from gramme.kernels.load import backend

    cpu = backend("cpu", a.threads)
    columns, rows = map(int, a.shape.split("x"))
    copies = 1 + (1 << 30) // (rows * columns // 2)  # more than caches hold
    weights = [_weight(cpu, rows, columns, a.form, a.group, i) for i in range(min(copies, 24))]
    print(f"{cpu.device.name}, {a.form}, {rows} x {columns}: {weights[0].nbytes / 1e6:.1f} MB")
    for tokens in map(int, a.tokens.split(",")):
        x = np.random.default_rng(0).standard_normal((tokens, columns), dtype=np.float32)
        act = cpu.ops.quantise(x, f"int8/{min(a.group, 128)}" if a.form.startswith("int") else "float")
        times = []
        for i in range(24 if tokens < 64 else 8):
            began = time.perf_counter()
            cpu.ops.matmul(act, weights[i % len(weights)], None)
            times.append(time.perf_counter() - began)
        best, median = min(times), statistics.median(times)
        print(f"{tokens:5} tokens  {median * 1e3:8.3f} ms  {weights[0].nbytes / median / 1e9:6.1f} GB/s  "
              f"{2e-9 * tokens * rows * columns / median:7.1f} Gop/s, best {2e-9 * tokens * rows * columns / best:.0f}")


def _weight(cpu, rows: int, columns: int, form: str, group: int, seed: int):
    from gramme.formats.grouped import Grouped
    from gramme.kernels.reference import storage_dtype

    rng = np.random.default_rng(seed)
    if not form.startswith("int"):
        return cpu.pack(rng.standard_normal((rows, columns), dtype=np.float32).astype(storage_dtype(form)))
    bits = int(form[3:])
    scales = np.full((rows, columns // group), 0.01, np.float16).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (rows, columns), np.uint8)
    return cpu.pack(Grouped(codes, scales, scales * (1 << (bits - 1)), bits))


if __name__ == "__main__":
    main()
