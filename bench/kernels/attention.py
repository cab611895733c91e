"""Times writing keys and values and attending to them over all layers: one token at growing contexts, 256 of a prompt.

    python bench/kernels/attention.py [--threads 2] [--level avx2] [--page-size 16] [--contexts 256,1024,4096,16384]
"""
import numpy as np
from common import HEAD_DIM, HEADS, KV_HEADS, LAYERS, Bench, floats


def main() -> None:
    def options(p):
        p.add_argument("--page-size", type=int, default=16)
        p.add_argument("--contexts", default="256,1024,4096,16384")

    bench = Bench(__doc__, options)
    contexts, size = [int(n) for n in bench.args.contexts.split(",")], bench.args.page_size
    for form in ("float16", "int8"):
        layers = [pages(form, max(*contexts, 256), size) for _ in range(LAYERS)]
        for tokens, context in [*((1, n) for n in contexts), (256, 256)]:
            seconds = bench.seconds(bench.kernels.attend, calls(layers, tokens, context, size))
            pairs = HEADS * sum(range(context - tokens + 1, context + 1))
            nbytes = 2 * context * KV_HEADS * (2 * HEAD_DIM if form == "float16" else HEAD_DIM + 2)
            bench.row(f"{form}, {tokens} of {context} tokens", seconds, nbytes, 4 * pairs * HEAD_DIM)
    bench.end()


def pages(form: str, tokens: int, size: int):
    """One layer's memory, behind a scratch page."""
    from gramme.kernels.ops import KV

    shape = (1 + -(-tokens // size), KV_HEADS, size, HEAD_DIM)
    if form != "int8":
        return KV(*(np.full(shape, 0.5, form) for _ in range(2)))
    return KV(*(np.full(shape, 64, form) for _ in range(2)), *(np.full(shape[:-1], 0.01, np.float16) for _ in range(2)))


def calls(layers, tokens: int, context: int, size: int) -> list[tuple]:
    """The arguments with which every layer attends for the last `tokens` of a context."""
    from gramme.kernels.ops import Step

    positions = np.arange(context - tokens, context, dtype=np.int32)
    starts, lengths = np.array([0, tokens], np.int32), np.array([context], np.int32)
    table = 1 + np.arange(-(-context // size), dtype=np.int32)[None]
    step = Step(positions, positions, positions + size, starts, lengths, table, None, tokens, context)
    q, k = floats(tokens, HEADS, HEAD_DIM), floats(tokens, KV_HEADS, HEAD_DIM)
    return [(q, k, k, kv, step, None, "float") for kv in layers]


if __name__ == "__main__":
    main()
