"""Times fetching the embeddings of tokens out of a matrix that is laid out for products.

    python bench/kernels/take.py [--threads 2] [--level avx2]
"""
import numpy as np
from common import VOCAB, WIDTH, Bench, weight


def main() -> None:
    bench = Bench(__doc__)
    for form in ("int4", "int8", "bfloat16"):
        embed = weight(bench, VOCAB, WIDTH, form)
        for tokens in (1, 256):
            ids = np.random.default_rng(0).integers(0, VOCAB, tokens).astype(np.int32)
            seconds = bench.seconds(bench.kernels.take, 8 * [(embed, ids)])
            bench.row(f"take {form}, {tokens} tokens", seconds, tokens * (embed.nbytes / VOCAB + 4 * WIDTH))
    bench.end()


if __name__ == "__main__":
    main()
