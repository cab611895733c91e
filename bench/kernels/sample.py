"""Times the choice of each row's token, the most probable or a drawn one, with the check that all logits are finite.

The choice is outside of a recorded step, so this time holds the call from Python.

    python bench/kernels/sample.py [--threads 2] [--level avx2]
"""
import time
from statistics import median

import numpy as np
from common import VOCAB, Bench, floats


def main() -> None:
    from gramme.kernels.ops import Sampling

    bench = Bench(__doc__)
    for rows in (1, 8, 64):
        logits, u = 3 * floats(rows, VOCAB), np.random.default_rng(1).random(rows)
        for name, temperature, top_p, top_k in (("greedy", 0, 1, 0), ("temperature 1", 1, 1, 0),
                                                ("temperature 0.7, top_p 0.9", 0.7, 0.9, 0),
                                                ("temperature 1, top_p 0.9, top_k 40", 1, 0.9, 40)):
            columns = np.repeat(np.array([[temperature], [top_p], [0]], np.float32), rows, 1)
            s = Sampling(*columns, np.full(rows, top_k, np.int32), u)
            times = []
            for _ in range(100):
                began = time.perf_counter()
                bench.kernels.sample(logits, s)
                times.append(time.perf_counter() - began)
            bench.row(f"{name}, {rows} x {VOCAB}", median(times), logits.nbytes)
    bench.end()


if __name__ == "__main__":
    main()
