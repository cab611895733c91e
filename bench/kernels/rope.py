"""Times the rotation of queries and keys where they lie in the product of a layer.

    python bench/kernels/rope.py [--threads 2] [--level avx2]
"""
import numpy as np
from common import HEAD_DIM, HEADS, KV_HEADS, LAYERS, Bench, floats


def main() -> None:
    bench = Bench(__doc__)
    table = floats(4096, HEAD_DIM)
    for tokens in (1, 256):
        qkv = floats(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
        positions = np.arange(1000, 1000 + tokens, dtype=np.int32)
        for name, part in {"queries": qkv[:, :HEADS], "keys": qkv[:, HEADS : HEADS + KV_HEADS]}.items():
            seconds = bench.seconds(bench.kernels.rope, LAYERS * [(part, table, positions)])
            bench.row(f"rope of {name}, {tokens} tokens", seconds, 8 * part.size)
    bench.end()


if __name__ == "__main__":
    main()
