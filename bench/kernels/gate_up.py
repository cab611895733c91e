"""Times the gate and up products with SwiGLU and the quantisation of their result.

    python bench/kernels/gate_up.py [--threads 2] [--level avx2] [--form int4] [--tokens 1,8,256]
"""
from common import FF, WIDTH, Bench, copies, floats, weight


def main() -> None:
    def options(p):
        p.add_argument("--form", default="int4", choices=("int4", "int8", "float32", "bfloat16"))
        p.add_argument("--tokens", default="1,2,4,8,64,256")

    bench = Bench(__doc__, options)
    form, ops = bench.args.form, bench.kernels
    weights = [weight(bench, 2 * FF, WIDTH, form)]
    weights += [weight(bench, 2 * FF, WIDTH, form, seed=i) for i in range(1, copies(weights[0].nbytes))]
    act = "int8/32" if form.startswith("int") else "float"
    for tokens in map(int, bench.args.tokens.split(",")):
        x = ops.quantise(floats(tokens, WIDTH), act)
        some = weights if tokens < 64 else weights[:4]
        seconds = bench.seconds(ops.gate_up, [(x, w, None, act) for w in some])
        bench.row(f"gate_up {form}, {tokens} tokens", seconds, weights[0].nbytes, 4 * tokens * FF * WIDTH)
    bench.end()


if __name__ == "__main__":
    main()
