"""How fast training goes, beside what the machine can do. Knows a step's record and counts operations; no text."""
import time
from typing import TextIO

import torch

from gramme.config import ModelConfig

RECENT = 20  # steps that a rate is the mean of


def operations(m: ModelConfig, record: dict[str, float]) -> float:
    """Floating-point operations of a step's products, forward and backward: 6 for each matrix entry and token. The
    head's are counted for the tokens that reach it; attention's own, below 2 % here, are left out."""
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    layer = m.width * (2 * q + 2 * kv + 3 * m.ff_width)
    return 6.0 * (m.layers * layer * record["tokens"] + m.vocab_size * m.width * record["counted"])


def measured_peak(threads: int, size: int = 1024) -> float:
    """Operations a second of float32 matrix products on so many cores: the best of five."""
    a, before = torch.ones(size, size), torch.get_num_threads()
    torch.set_num_threads(threads)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * size**3 / best


class Line:
    """One live line on a terminal; elsewhere a line every RECENT steps."""

    def __init__(self, out: TextIO, steps: int, peak: float):
        self.out, self.steps, self.peak, self.live = out, steps, peak, out.isatty()
        self.recent: list[tuple[dict[str, float], float]] = []

    def show(self, record: dict[str, float], operations: float) -> None:
        self.recent = [*self.recent[1 - RECENT :], (record, operations)]
        done = int(record["step"]) + 1
        if not self.live and done % RECENT and done != self.steps:
            return
        seconds = sum(r["s"] for r, _ in self.recent)
        mean = sum(r["loss"] for r, _ in self.recent) / len(self.recent)
        left_s = (self.steps - done) * seconds / len(self.recent)
        text = (f"step {done}/{self.steps}  loss {mean:.3f}  norm {record['norm']:.2f}  "
                f"{sum(r['tokens'] for r, _ in self.recent) / seconds:,.0f} tokens/s  "
                f"{sum(n for _, n in self.recent) / seconds / self.peak:.0%} of fp32 peak  "
                f"{left_s // 60:.0f} min {left_s % 60:.0f} s left")
        print(f"\r{text}" if self.live else text, end="" if self.live and done < self.steps else "\n", file=self.out,
              flush=True)
