"""Which level runs here: the best one that gives the known answers. Knows the reference, which is the answer."""
import sys
from functools import cache

import numpy as np

from gramme.formats.grouped import Grouped
from gramme.kernels import reference
from gramme.kernels.cpu.kernels import CpuKernels
from gramme.kernels.cpu.layout import pack
from gramme.kernels.cpu.library import UNTESTED, choose, forced, levels


@cache
def best_level() -> str:
    """Tried once a process, in about a millisecond a level; a level that is passed over is said on standard error."""
    level, notes = choose(right)
    for note in notes:
        print(f"gramme: {note}", file=sys.stderr)
    return level


def said() -> str:
    """The level, who chose it, and those that could be had. Raises ConfigError for a wrong GRAMME_CPU_LEVEL."""
    how = "forced by GRAMME_CPU_LEVEL" if forced() else "the best that gives the known answers"
    tested = "; untested" if best_level() in UNTESTED else ""
    return f"{best_level()} ({how}{tested}; this processor runs {', '.join(levels())})"


def right(level: str) -> bool:
    """Whether integer and float products of a small matrix, with zero points and without, are the reference's."""
    kernels, rng = CpuKernels(level, 1), np.random.default_rng(0)
    x = rng.standard_normal((3, 128), dtype=np.float32)
    acts = kernels.quantise(x, "int8/32")
    want = reference.quantise(x, "int8/32")
    if not all(np.array_equal(a, b) for a, b in zip(acts, want, strict=True)):
        return False
    dense = rng.standard_normal((40, 128), dtype=np.float32)
    tries = [(x, dense)]
    for bits, zero in ((4, 8), (4, 7), (8, 128), (8, 127)):
        scales = rng.random((40, 4), dtype=np.float32).astype(np.float16).astype(np.float32)
        tries.append((want, Grouped(rng.integers(0, 1 << bits, (40, 128), np.uint8), scales, scales * zero, bits)))
    return all(np.allclose(kernels.matmul(a, pack(w), None), reference.matmul(a, w, None), rtol=1e-4, atol=1e-3)
               for a, w in tries)
