"""Times the matrix products of the CPU kernels: GB/s of weights, Gop/s, on the layers of known shapes.

    python bench/kernels/matmul.py [--threads 2] [--level avx2] [--form int4] [--shape 4096x14336] [--tokens 1,4,8,256]
"""
from common import Bench, copies, floats, weight


def main() -> None:
    def options(p):
        p.add_argument("--form", default="int4", choices=("int4", "int8", "float32", "bfloat16"))
        p.add_argument("--shape", default="2048x11264", help="columns x rows")
        p.add_argument("--group", type=int, default=32, help="columns that share a weight's scale")
        p.add_argument("--act", type=int, default=0, help="columns that share an activation's scale")
        p.add_argument("--tokens", default="1,2,4,8,16,64,256")

    bench = Bench(__doc__, options)
    a, ops = bench.args, bench.kernels
    columns, rows = map(int, a.shape.split("x"))
    weights = [weight(bench, rows, columns, a.form, a.group)]
    weights += [weight(bench, rows, columns, a.form, a.group, i) for i in range(1, copies(weights[0].nbytes))]
    for tokens in map(int, a.tokens.split(",")):
        act = f"int8/{a.act or min(a.group, 128)}" if a.form.startswith("int") else "float"
        x = ops.quantise(floats(tokens, columns), act)
        some = weights if tokens < 64 else weights[:4]
        seconds = bench.seconds(ops.matmul, [(x, w, None) for w in some])
        bench.row(f"{a.form}, {tokens} x {a.shape}", seconds, weights[0].nbytes, 2 * tokens * rows * columns)
    bench.end()


if __name__ == "__main__":
    main()
