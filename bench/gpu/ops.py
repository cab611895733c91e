"""Every operation: right against float64 on fresh random inputs with poisoned outputs, then timed against its floor.

The floor of an operation is the time of its bytes at the speed of a copy, or of its operations at that of a large
product, whichever is longer, both measured here in the same run.
"""
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from common import CACHED_BYTES, DEVICE, DRY, GROUP, MODEL, called, ceilings, copies, save, seconds, time_left

from gramme.formats.grouped import Grouped
from gramme.kernels import eager
from gramme.kernels.cuda.attention import attend_pages
from gramme.kernels.cuda.backend import CudaDevice, Kernels, Settings
from gramme.kernels.cuda.heads import place, rope
from gramme.kernels.cuda.matmul import dense_product, tile_product
from gramme.kernels.cuda.norm import swiglu
from gramme.kernels.cuda.packing import Packed
from gramme.kernels.ops import KV, Sampling, Step
from gramme.plan.gpu_memory import many_tile

SEED = time.time_ns() % 2**32
TOLERANCE = 1e-2
R = np.random.default_rng(SEED)
GATE_UP_TOKENS = (1, 3, 33) if DRY else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
CONTEXTS, BATCHES = ((40, 300), (1, 3)) if DRY else ((256, 2048, 8192), (1, 4, 16, 64))
H, HK, DH, D, FF = MODEL.heads, MODEL.kv_heads, MODEL.head_dim, MODEL.width, MODEL.ff_width
SHAPES = {"qkv": ((H + 2 * HK) * DH, D), "o": (D, H * DH), "down": (D, FF)}
MANY = 40 if DRY else 2048  # beyond, a product is as fast as it gets
wrong: list[str] = []


@contextmanager
def poisoned():
    """torch.empty hands out what looks like a result gone wrong."""
    makers = {name: getattr(torch, name) for name in ("empty", "empty_like")}
    for name, make in makers.items():
        def made(*args, make=make, **kwargs):
            a = make(*args, **kwargs)
            return a.fill_(float("nan") if a.is_floating_point() else 77)

        setattr(torch, name, made)
    try:
        yield
    finally:
        for name, make in makers.items():
            setattr(torch, name, make)


def answer(run, *args):
    with poisoned():
        return run(*args)


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> float:
    """The worst row's error, norm-wise. The benchmark fails in the end when it is too large or not a number."""
    got, want = got.double().flatten(0, -2), want.double().flatten(0, -2)
    error = ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()
    if not error < TOLERANCE:
        wrong.append(name)
        print(f"{name} is wrong: the worst row is off by {error:.2e} (seed {SEED})")
    return error


def figures(took: float, error: float, nbytes: float = 0, ops: float = 0, kind: str = "fp32") -> dict:
    """What is kept of an operation, `share` being its floor over the time it took."""
    c = ceilings()
    floor = max(nbytes / c["copy_bytes_s"], ops / c[f"{kind}_ops_s"])
    return dict(seconds=took, error=error, bytes_s=nbytes / took, ops_s=ops / took, share=floor / took)


def random(*shape: int, scale: float = 1.0, dtype=torch.float16) -> torch.Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def weight(n: int, k: int, bits: int) -> tuple[Grouped, torch.Tensor]:
    """An integer weight on the host, and the same as float64 on the device."""
    scales = (R.uniform(0.5, 1.5, (n, k // GROUP)) * 0.2 * k**-0.5 / 2 ** (bits - 4)).astype(np.float16)
    scales = scales.astype(np.float32)
    codes = R.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    dense = torch.tensor(codes, device=DEVICE).double() - (1 << bits - 1)
    dense *= torch.tensor(scales, device=DEVICE).double().repeat_interleave(GROUP, 1)
    return Grouped(codes, scales, scales * (1 << bits - 1), bits), dense


def several(w: Packed | torch.Tensor) -> list[Packed | torch.Tensor]:
    """The weight and as many copies as no cache holds."""
    clone = lambda: Packed(*(a.clone() if torch.is_tensor(a) else a for a in w)) if isinstance(w, Packed) else w.clone()
    return [w, *(clone() for _ in range(copies(w.nbytes) - 1))]


def products(kernels: Kernels, out: dict) -> None:
    """4-bit against float16, for the largest matrix at every number of tokens and for the others at a few."""
    w, dense = weight(2 * FF, D, 4)
    packed, half = several(kernels.pack(w)), several(dense.half())
    for tokens in GATE_UP_TOKENS:
        if time_left() < 100:
            out.setdefault("left out", []).append(f"gate_up {tokens}")
            continue
        x = random(tokens, D)
        y = x.double() @ dense.T
        gate, up = y.chunk(2, -1)
        first = answer(kernels.gate_up, x, packed[0], None, "float")
        error = max(check(f"gate_up W4 {tokens}", first, F.silu(gate) * up),
                    check(f"matmul W4 {tokens}", answer(kernels.matmul, x, packed[0], None), y))
        took = seconds(kernels.matmul, [(x, p, None) for p in packed])
        library = seconds(F.linear, [(x, h) for h in half])
        fused = seconds(kernels.gate_up, [(x, p, None, "float") for p in packed])
        nbytes, ops = packed[0].nbytes + 2 * tokens * (D + 2 * FF), 2 * tokens * D * 2 * FF
        out[f"gate_up {tokens}"] = figures(took, error, nbytes, ops) | dict(
            fp16_seconds=library, speedup=library / took, fused_seconds=fused)
        save("ops", out)
    regimes(kernels, packed, dense, out)
    del packed, half, dense
    for name, (n, k) in SHAPES.items():
        w, dense = weight(n, k, 4)
        packed = several(kernels.pack(w))
        for tokens in (1, 16):
            x = random(tokens, k)
            error = check(name, answer(kernels.matmul, x, packed[0], None), x.double() @ dense.T)
            took = seconds(kernels.matmul, [(x, p, None) for p in packed])
            out[f"{name} {tokens}"] = figures(took, error, packed[0].nbytes, 2 * tokens * n * k)
    integers(kernels, out)


def regimes(kernels: Kernels, packed: list[Packed], dense: torch.Tensor, out: dict) -> None:
    """Many tokens: tiles with sums in float32 and in float16, and the dense way, also with outliers of 100 times."""
    x = random(MANY, D)
    ops = 2 * MANY * D * 2 * FF
    rest = None, False, many_tile(False)
    tiles = lambda half: lambda x, w: tile_product(x, w, *rest, half, kernels.scratch, kernels.locks)
    ways = {"tiles, sums in float32": (tiles(False), "fp32"), "tiles, sums in float16": (tiles(True), "fp16"),
            "dense": (lambda x, w: dense_product(x, w, None, kernels.scratch), "fp32")}
    for name, (run, kind) in ways.items():
        error = check(name, answer(run, x, packed[0]), x.double() @ dense.T)
        out[name] = figures(seconds(run, [(x, p) for p in packed]), error, packed[0].nbytes, ops, kind)
    w, dense = weight(D, FF, 4)
    x = random(16, FF) * torch.where(torch.rand(FF, device=DEVICE) < 0.01, 100, 1).half()
    got = answer(tiles(True), x, kernels.pack(w))
    out["sums in float16, outliers of 100 times"] = dict(error=check("outliers", got, x.double() @ dense.T))


def integers(kernels: Kernels, out: dict) -> None:
    """8-bit weights and activations."""
    w, dense = weight(2 * FF, D, 8)
    packed = several(kernels.pack(w))
    for tokens in (1, 16, MANY):
        x = kernels.ops().quantise(random(tokens, D), f"int8/{GROUP}")
        want = (x.values.double() * x.scales.double().repeat_interleave(GROUP, 1)) @ dense.T
        error = check("W8A8", answer(kernels.matmul, x, packed[0], None), want)
        took = seconds(kernels.matmul, [(x, p, None) for p in packed])
        out[f"W8A8 {tokens}"] = figures(took, error, packed[0].nbytes) | dict(ops_s=2 * tokens * D * 2 * FF / took)
    save("ops", out)


def pages(rows: int, length: int, form: str) -> tuple[KV, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Random pages, tables of `rows` contexts in different pages until no cache holds them, and keys and values of the
    first context as float64 (length, Hk, Dh)."""
    size = 16
    each = -(-length // size)
    count = copies(rows * length * MODEL.kv_token_bytes(form) / MODEL.layers)
    table = (torch.randperm(count * rows * each, device=DEVICE).view(count, rows, each) + 1).int()
    shape = (table.numel() + 1, HK, size, DH)
    if form == "int8":
        k, v = (torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8) for _ in range(2))
        kv = KV(k, v, *((torch.rand(shape[:-1], device=DEVICE) / 60).half() for _ in range(2)))
    else:
        kv = KV(*(random(*shape).to(getattr(torch, form)) for _ in range(2)))
    first = table[0, 0].long()
    plain = [a[first].double() * (1 if s is None else s[first].double()[..., None]) for a, s in zip(kv[:2], kv[2:])]
    return kv, list(table), *(a.transpose(1, 2).flatten(0, 1)[:length] for a in plain)


def attention(kernels: Kernels, out: dict) -> None:
    """Decoding at every batch and context, a prompt, a chunk behind a long context; every form of a page once."""
    cases = [(16, 1, CONTEXTS[-1], "float16")] if not DRY else []  # first what a goal is set for
    cases += [(b, 1, c, "float16") for c in CONTEXTS for b in BATCHES if (b, 1, c, "float16") not in cases]
    cases += [(4, 1, CONTEXTS[1], "int8"), (4, 1, CONTEXTS[1], "float8_e4m3fn")]
    cases += [(1, n, n, "float16") for n in CONTEXTS[:2]] + [(1, CONTEXTS[0], CONTEXTS[-1], "float16")]
    for rows, tokens, length, form in cases:
        name = f"attend {rows} x {tokens} of {length} {form}"
        if time_left() < 25:
            out.setdefault("left out", []).append(name)
        else:
            out[name] = attended(kernels, name, rows, tokens, length, form)
            save("ops", out)


def attended(kernels: Kernels, name: str, rows: int, tokens: int, length: int, form: str) -> dict:
    """The last `tokens` of `length` in each of `rows` contexts."""
    kv, tables, k, v = pages(rows, length, form)
    q = random(rows * tokens, H, DH)
    ints = lambda values: torch.tensor(values, dtype=torch.int32, device=DEVICE)
    starts, lengths = ints(range(0, rows * tokens + 1, tokens)), ints([length] * rows)

    def run(table: torch.Tensor) -> torch.Tensor:
        step = Step(None, None, None, starts, lengths, table, None, tokens, length)
        return attend_pages(q, kv, step, None, kernels.scratch, kernels.locks, kernels.processors, False)

    got = answer(run, tables[0]).view(rows, tokens, H, DH)[0]  # one row: float64 scores of all would not fit
    mask = torch.arange(length, device=DEVICE) <= torch.arange(length - tokens, length, device=DEVICE)[:, None]
    want = F.scaled_dot_product_attention(q[:tokens].double().transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1),
                                          attn_mask=mask, enable_gqa=True).transpose(0, 1)
    error = check(name, got, want)
    nbytes = rows * length * MODEL.kv_token_bytes(form) / MODEL.layers
    pairs = rows * sum(range(length - tokens + 1, length + 1))
    return figures(seconds(run, [(table,) for table in tables]), error, nbytes, 4 * H * DH * pairs)


def small(kernels: Kernels, out: dict) -> None:
    """Norm, activation function, heads into pages, choosing; what they read is in the cache, as in a step."""
    ops, often = kernels.ops(), 1 if DRY else 32
    gain, table = torch.rand(D, device=DEVICE) + 0.5, torch.randn(4096, DH, device=DEVICE)
    for tokens in (1, 33) if DRY else (1, 64, 1024):
        x, r, wide = random(tokens, D), random(tokens, D), random(tokens, 2 * FF)
        total = (x.double() + r.double())
        normed = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain
        args = x, r, gain, 1e-5, "float"
        error = check("add_norm", answer(ops.add_norm, *args)[0], normed)
        out[f"add_norm {tokens}"] = figures(seconds(ops.add_norm, [args] * often), error, 8 * tokens * D)
        gate, up = wide.double().chunk(2, -1)
        error = check("swiglu", answer(swiglu, wide, "float"), F.silu(gate) * up)
        out[f"swiglu {tokens}"] = figures(seconds(swiglu, [(wide, "float")] * often), error, 6 * tokens * FF)
        y = random(tokens, H + 2 * HK, DH)
        positions = torch.randint(0, 4096, (tokens,), device=DEVICE, dtype=torch.int32)
        kv = KV(*torch.zeros(2, tokens // 16 + 2, HK, 16, DH, device=DEVICE, dtype=torch.float16))
        slots = (torch.randperm(tokens, device=DEVICE) + 16).int()
        q, k = (rope(a, table, positions) for a in (y[:, :H], y[:, H : H + HK]))
        args = q, k, y[:, H + HK :], kv, slots
        want = eager.rope(y[:, : H + HK].double(), table.double(), positions)
        error = check("place q", answer(place, *args), want[:, :H])
        error = max(error, check("place k", kv.k[slots.long() // 16, :, slots.long() % 16], want[:, H:]))
        out[f"place {tokens}"] = figures(seconds(place, [args] * often), error, 4 * tokens * (H + 2 * HK) * DH)
    choices(ops, out)
    save("ops", out)


def choices(ops, out: dict) -> None:
    for rows in (1, 3) if DRY else (1, 64):
        logits = random(rows, MODEL.vocab_size, scale=3.0)
        for name, heat in {"greedy": 0.0, "top_k 50, top_p 0.9": 0.8}.items():
            full = lambda v, dtype, rows=rows: torch.full((rows,), v, dtype=dtype, device=DEVICE)
            s = Sampling(full(heat, torch.float32), full(0.9, torch.float32), full(0.0, torch.float32),
                         full(50, torch.int32), torch.rand(rows, device=DEVICE, dtype=torch.float64))
            tokens = answer(ops.sample, logits, s).tokens.long()
            if not heat and not torch.equal(tokens, logits.float().argmax(-1)):
                wrong.append("greedy choice")
            if heat and not (logits.gather(1, tokens[:, None]) >= logits.topk(50).values[:, -1:]).all():
                wrong.append("a choice outside the 50 most probable")
            took = seconds(ops.sample, [(logits, s)] * (1 if DRY else 8))
            out[f"sample {name} {rows}"] = dict(seconds=took, bytes_s=logits.nbytes / took)


def main() -> None:
    kernels = Kernels(CudaDevice(DEVICE).name, Settings())
    out = {"seed": SEED, "cache filled with": CACHED_BYTES, "ceilings": ceilings()}
    small(kernels, out)
    products(kernels, out)
    attention(kernels, out)
    out["wrong"] = wrong
    save("ops", out, finished=True)
    called("add_norm_kernel", "swiglu_kernel", "place_kernel", "attend_kernel", "matmul_kernel", "rows_kernel",
           "quantise_kernel", "choose_kernel")
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
