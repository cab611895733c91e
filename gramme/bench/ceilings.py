"""Measures what this machine allows: for now, how fast memory is read. Knows no model."""
import time
from pathlib import Path

import numpy as np


def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=32 << 20)


def read_bandwidth(nbytes: int = 1 << 30, seconds: float = 0.5) -> float:
    """GB/s at which BLAS, on all its threads, reads a matrix of `nbytes` once: the best of as many passes as fit."""
    matrix, x = np.ones((nbytes // 16384, 4096), np.float32), np.ones(4096, np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        matrix @ x
        best = min(best, time.perf_counter() - began)
    return matrix.nbytes / best / 1e9
