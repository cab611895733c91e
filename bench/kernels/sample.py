"""Times the choice of the most probable token of each row, with the check that all its logits are finite.

The choice is outside of a recorded step, so this time holds the call from Python.

    python bench/kernels/greedy.py [--threads 2] [--level avx2]
"""
import time
from statistics import median

import numpy as np
from common import VOCAB, Bench, floats


def main() -> None:
    from gramme.kernels.ops import Sampling

    bench = Bench(__doc__)
    for rows in (1, 8, 64):
        logits, zero = floats(rows, VOCAB), np.zeros(rows, np.float32)
        s = Sampling(temperature=zero, top_p=zero + 1, min_p=zero, top_k=zero.astype(np.int32), u=zero.astype(float))
        times = []
        for _ in range(200):
            began = time.perf_counter()
            bench.kernels.sample(logits, s)
            times.append(time.perf_counter() - began)
        bench.row(f"greedy, {rows} x {VOCAB}", median(times), logits.nbytes)
    bench.end()


if __name__ == "__main__":
    main()
