"""Times the norms and the quantisation of activations: one token as in decode, 256 as in prefill.

    python bench/kernels/norms.py [--threads 2] [--level avx2]
"""
from common import HEAD_DIM, HEADS, LAYERS, WIDTH, Bench, floats


def main() -> None:
    bench = Bench(__doc__)
    ops, gain, small = bench.kernels, floats(WIDTH), floats(HEAD_DIM)
    for tokens in (1, 256):
        x, r, heads = floats(tokens, WIDTH), floats(tokens, WIDTH), floats(tokens, HEADS, HEAD_DIM)
        work = {  # bytes read and written for a value
            "add + norm -> float": (16, ops.add_norm, (x, r, gain, 1e-5, "float")),
            "add + norm -> int8/32": (13, ops.add_norm, (x, r, gain, 1e-5, "int8/32")),
            "norm of heads": (8, ops.head_norm, (heads, small, 1e-5)),
            "quantise to int8/32": (5, ops.quantise, (x, "int8/32")),
        }
        for name, (nbytes, call, given) in work.items():
            seconds = bench.seconds(call, 2 * LAYERS * [given])
            bench.row(f"{name}, {tokens} x {WIDTH}", seconds, nbytes * tokens * WIDTH)
    bench.end()


if __name__ == "__main__":
    main()
