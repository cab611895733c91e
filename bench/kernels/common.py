"""What the benchmarks of single operations share: recorded calls timed by their replay, beside what the machine allows.

A time holds no Python: the calls are recorded once and replayed by one call into C. Bytes are those that an operation
must read and write; where they stay in a cache, as a step's activations do, their rate may exceed that of memory.
"""
import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FF, VOCAB = 22, 2048, 32, 4, 64, 5632, 32000  # a Llama of 1.1 G parameters


class Bench:
    """The kernels, the ceilings, and the rows measured so far."""

    def __init__(self, description: str, add: Callable[[argparse.ArgumentParser], object] = lambda _: None):
        p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
        p.add_argument("--level", default="", help="forces an instruction set")
        add(p)
        self.args = p.parse_args()
        if self.args.level:
            os.environ["GRAMME_CPU_LEVEL"] = self.args.level
        from gramme.bench.ceilings import measure
        from gramme.kernels.load import backend

        self.backend = backend("cpu", self.args.threads)
        self.kernels = self.backend.device.kernels
        rates = measure(self.args.threads, seconds=0.5, disk=False)
        self.ceilings = {"gb_s": rates["bandwidth"] / 1e9, "gop_s": rates["int8"] / 1e9}
        self.rows: list[dict[str, object]] = []
        print(f"{self.backend.device.name}; memory read at {self.ceilings['gb_s']:.1f} GB/s, 4-bit products in cache "
              f"at {self.ceilings['gop_s']:.0f} Gop/s")

    def seconds(self, call: Callable[..., object], each: Sequence[tuple], least: float = 0.3) -> float:
        """Seconds of one call of the many with these arguments: the median of the replays that fit into `least`."""
        replay, times = self.kernels.capture(lambda: [call(*some) for some in each]), []
        replay()
        end = time.perf_counter() + least
        while len(times) < 5 or time.perf_counter() < end:
            began = time.perf_counter()
            replay()
            times.append(time.perf_counter() - began)
        return median(times) / len(each)

    def row(self, name: str, seconds: float, nbytes: float = 0, ops: float = 0) -> None:
        """Print and keep a result; `ops` counts a multiply-add as two."""
        rates = {"gb_s": nbytes / seconds / 1e9, "gop_s": ops / seconds / 1e9}
        shares = {unit: rate / self.ceilings[unit] for unit, rate in rates.items() if rate}
        text = "  ".join(f"{rates[u]:7.1f} {'GB/s' if u == 'gb_s' else 'Gop/s'} ({s:4.0%})" for u, s in shares.items())
        print(f"{name:34} {1e6 * seconds:10.1f} us  {text}", flush=True)
        self.rows.append({"test": name, "seconds": seconds} | {u: rates[u] for u in shares} | {
            f"{u}_share": s for u, s in shares.items()})

    def end(self) -> None:
        print(json.dumps({"device": self.backend.device.name, "ceilings": self.ceilings, "rows": self.rows}))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def weight(bench: Bench, rows: int, columns: int, form: str, group: int = 32, seed: int = 0):
    """A random matrix laid out for the kernels: "int4", "int8" or a type of floats."""
    from gramme.formats.grouped import Grouped
    from gramme.kernels.reference import storage_dtype

    rng = np.random.default_rng(seed)
    if not form.startswith("int"):
        return bench.backend.pack(rng.standard_normal((rows, columns), dtype=np.float32).astype(storage_dtype(form)))
    bits = int(form[3:])
    scales = np.full((rows, columns // group), 0.01, np.float16).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (rows, columns), np.uint8)
    return bench.backend.pack(Grouped(codes, scales, scales * (1 << (bits - 1)), bits))


def copies(nbytes: int, most: int = 24) -> int:
    """How many matrices of `nbytes` are more than caches hold."""
    return max(1, min(most, -(-(1 << 30) // nbytes)))
