"""What a graphics card reaches at most, by PyTorch's own operations. Knows no kernel of ours and no plan.

Names are those of plan/gpus.py. Copying reads and writes; products are square, large enough to fill any card.
"""
import time
from collections.abc import Callable

import torch

BYTES = 1 << 29  # of each end of a copy: beyond the last cache of every card
SIZE = 8192  # rows and columns of a product


def measure(device: str, seconds: float) -> dict[str, float]:
    """bytes/s and operations/s of the fastest pass, each probe for about `seconds`. Raises RuntimeError where PyTorch
    cannot do one of them here, or memory does not suffice."""
    rates = {"bandwidth": _copying(device, seconds)}
    half = torch.ones(SIZE, SIZE, dtype=torch.float16, device=device)
    rates["fp32_accumulate"] = _products(device, lambda: half @ half, seconds)
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "allow_fp16_accumulation"):  # from PyTorch 2.7 on
        before, settings.allow_fp16_accumulation = settings.allow_fp16_accumulation, True
        try:
            rates["fp16_accumulate"] = _products(device, lambda: half @ half, seconds)
        finally:
            settings.allow_fp16_accumulation = before
    codes = torch.ones(SIZE, SIZE, dtype=torch.int8, device=device)
    rates["int8"] = _products(device, lambda: torch._int_mm(codes, codes), seconds)
    return rates


def _copying(device: str, seconds: float) -> float:
    source, copy = (torch.zeros(BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * BYTES / _best(device, lambda: copy.copy_(source), seconds)


def _products(device: str, run: Callable[[], object], seconds: float) -> float:
    return 2 * SIZE**3 / _best(device, run, seconds)


def _best(device: str, run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest pass among as many as fit, each waited for."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    run()
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
