"""Every operation: right against float64 on fresh random inputs with poisoned outputs, then timed against its floor."""
import time

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, DRY, GROUP, MODEL, called, save, seconds, time_left

from gramme.formats.grouped import Grouped
from gramme.kernels import eager
from gramme.kernels.cuda.attention import attend_pages
from gramme.kernels.cuda.backend import CudaDevice, Kernels, Settings
from gramme.kernels.cuda.heads import place, rope
from gramme.kernels.cuda.matmul import dense_product, tile_product
from gramme.kernels.cuda.norm import swiglu
from gramme.kernels.ops import KV, Sampling, Step
from gramme.plan.gpu_memory import MANY_TILE
from gramme.runtime.padded import SIZES

SEED = time.time_ns() % 2**32
TOLERANCE = 1e-2
R = np.random.default_rng(SEED)
GATE_UP_TOKENS = (1, 3, 33) if DRY else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
CONTEXTS, BATCHES = ((40, 300), (1, 3)) if DRY else ((256, 2048, 8192), (1, 4, 16, 64))
H, HK, DH, D, FF = MODEL.heads, MODEL.kv_heads, MODEL.head_dim, MODEL.width, MODEL.ff_width
SHAPES = {"qkv": ((H + 2 * HK) * DH, D), "o": (D, H * DH), "down": (D, FF)}


def poison() -> None:
    """torch.empty hands out what looks like a result gone wrong."""
    for name in ("empty", "empty_like"):
        def made(*args, make=getattr(torch, name), **kwargs):
            a = make(*args, **kwargs)
            return a.fill_(float("nan") if a.is_floating_point() else 77)

        setattr(torch, name, made)


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> float:
    """The worst row's error, norm-wise. Ends the benchmark when it is too large or not a number."""
    got, want = got.double().flatten(0, -2), want.double().flatten(0, -2)
    error = ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()
    if not error < TOLERANCE:
        raise SystemExit(f"{name} is wrong: the worst row is off by {error:.2e} (seed {SEED})")
    return error


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


def ceilings() -> dict[str, float]:
    a = torch.zeros(1 << 16 if DRY else 1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.zeros_like(a)
    n = 64 if DRY else 8192
    x, y = random(n, n), random(n, n)
    out = {"copy_bytes_s": 2 * a.nbytes / seconds(b.copy_, a),
           "matmul_fp32_accumulate_ops_s": 2 * n**3 / seconds(torch.mm, x, y)}
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    out["matmul_fp16_accumulate_ops_s"] = 2 * n**3 / seconds(torch.mm, x, y)
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    return out


def products(kernels: Kernels, out: dict) -> None:
    """4-bit against float16, for the largest matrix at every number of tokens and for the others at a few."""
    w, dense = weight(2 * FF, D, 4)
    packed, half = kernels.pack(w), dense.half()
    for tokens in GATE_UP_TOKENS:
        x = random(tokens, D)
        y = x.double() @ dense.T
        gate, up = y.chunk(2, -1)
        error = max(check(f"gate_up W4 {tokens}", kernels.gate_up(x, packed, None, "float"), F.silu(gate) * up),
                    check(f"matmul W4 {tokens}", kernels.matmul(x, packed, None), y))
        took, library = seconds(kernels.matmul, x, packed, None), seconds(F.linear, x, half)
        fused = seconds(kernels.gate_up, x, packed, None, "float")
        out[f"gate_up {tokens}"] = dict(
            seconds=took, fp16_seconds=library, speedup=library / took, fused_seconds=fused, error=error,
            bytes_s=(packed.nbytes + 2 * tokens * (D + 2 * FF)) / took, ops_s=2 * tokens * D * 2 * FF / took)
    x = random(GATE_UP_TOKENS[-1], D)
    tiles = lambda half: (tile_product, x, packed, None, False, MANY_TILE, half, kernels.scratch, kernels.locks)
    for name, (run, *args) in {"fp32 accumulate, tiles": tiles(False), "fp16 accumulate, tiles": tiles(True),
                               "dense": (dense_product, x, packed, None, kernels.scratch)}.items():
        error, took = check(name, run(*args), x.double() @ dense.T), seconds(run, *args)
        out[f"{name} {len(x)}"] = dict(seconds=took, ops_s=2 * len(x) * D * 2 * FF / took, error=error)
    for name, (n, k) in SHAPES.items():
        w, dense = weight(n, k, 4)
        packed = kernels.pack(w)
        for tokens in (1, 16):
            x = random(tokens, k)
            error = check(name, kernels.matmul(x, packed, None), x.double() @ dense.T)
            took = seconds(kernels.matmul, x, packed, None)
            out[f"{name} {tokens}"] = dict(seconds=took, error=error, bytes_s=packed.nbytes / took)
    w, dense = weight(2 * FF, D, 8)
    packed = kernels.pack(w)
    for tokens in (1, 16, GATE_UP_TOKENS[-1]):
        x = kernels.ops().quantise(random(tokens, D), f"int8/{GROUP}")
        want = (x.values.double() * x.scales.double().repeat_interleave(GROUP, 1)) @ dense.T
        error = check("W8A8", kernels.matmul(x, packed, None), want)
        took = seconds(kernels.matmul, x, packed, None)
        out[f"W8A8 {tokens}"] = dict(seconds=took, error=error, ops_s=2 * tokens * D * 2 * FF / took)


def pages(rows: int, length: int, form: str) -> tuple[KV, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pages of `rows` contexts, their table, and keys and values as float64 (rows, length, Hk, Dh)."""
    size = 16
    each = -(-length // size)
    table = (torch.randperm(rows * each, device=DEVICE).view(rows, each) + 1).int()
    shape = (rows * each + 1, HK, size, DH)
    if form == "int8":
        k, v = (torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8) for _ in range(2))
        scales = [(torch.rand(shape[:-1], device=DEVICE) / 60).half() for _ in range(2)]
        kv = KV(k, v, *scales)
        plain = [a.double() * s.double()[..., None] for a, s in zip((k, v), scales)]
    else:
        kv = KV(*(random(*shape).to(getattr(torch, form)) for _ in range(2)))
        plain = [a.double() for a in kv[:2]]
    k, v = (a[table.long()].transpose(2, 3).reshape(rows, each * size, HK, DH)[:, :length] for a in plain)
    return kv, table, k, v


def attention(kernels: Kernels, out: dict) -> None:
    """Decoding at every batch and context, a prompt, a chunk behind a long context; every form of a page once."""
    cases = [(b, 1, c, "float16") for c in CONTEXTS for b in BATCHES]
    cases += [(4, 1, CONTEXTS[1], "int8"), (4, 1, CONTEXTS[1], "float8_e4m3fn")]
    cases += [(1, n, n, "float16") for n in CONTEXTS[:2]] + [(1, CONTEXTS[0], CONTEXTS[-1], "float16")]
    for rows, tokens, length, form in cases:
        if time_left() < 40:
            out.setdefault("left out", []).append(f"attend {rows} x {tokens} of {length} {form}")
            continue
        kv, table, k, v = pages(rows, length, form)
        q = random(rows * tokens, H, DH)
        ints = lambda values: torch.tensor(values, dtype=torch.int32, device=DEVICE)
        step = Step(None, None, None, ints(range(0, rows * tokens + 1, tokens)), ints([length] * rows), table, None,
                    tokens, length)
        run = attend_pages, q, kv, step, None, kernels.scratch, kernels.locks, kernels.processors, False
        got = run[0](*run[1:]).view(rows, tokens, H, DH)
        first = got[:1], q.view(rows, tokens, H, DH)[:1].double()  # one row: float64 scores of all would not fit
        mask = torch.arange(length, device=DEVICE) <= torch.arange(length - tokens, length, device=DEVICE)[:, None]
        want = F.scaled_dot_product_attention(first[1].transpose(1, 2), k[:1].transpose(1, 2), v[:1].transpose(1, 2),
                                              attn_mask=mask, enable_gqa=True).transpose(1, 2)
        error, took = check(f"attend {rows} {length} {form}", first[0], want), seconds(*run)
        nbytes = rows * length * MODEL.kv_token_bytes(form) / MODEL.layers
        out[f"attend {rows} x {tokens} of {length} {form}"] = dict(
            seconds=took, error=error, bytes_s=nbytes / took,
            ops_s=4 * rows * H * DH * sum(range(length - tokens + 1, length + 1)) / took)


def small(kernels: Kernels, out: dict) -> None:
    """Norm, activation function, heads into pages, choosing."""
    ops = kernels.ops()
    gain, table = torch.rand(D, device=DEVICE) + 0.5, torch.randn(4096, DH, device=DEVICE)
    for tokens in (1, 33) if DRY else (1, 64, 1024):
        x, r, wide = random(tokens, D), random(tokens, D), random(tokens, 2 * FF)
        total = (x.double() + r.double())
        normed = total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain
        error = check("add_norm", ops.add_norm(x, r, gain, 1e-5, "float")[0], normed)
        out[f"add_norm {tokens}"] = dict(seconds=seconds(ops.add_norm, x, r, gain, 1e-5, "float"), error=error)
        gate, up = wide.double().chunk(2, -1)
        error = check("swiglu", swiglu(wide, "float"), F.silu(gate) * up)
        out[f"swiglu {tokens}"] = dict(seconds=seconds(swiglu, wide, "float"), error=error)
        y = random(tokens, H + 2 * HK, DH)
        positions = torch.randint(0, 4096, (tokens,), device=DEVICE, dtype=torch.int32)
        kv = KV(*torch.zeros(2, tokens // 16 + 2, HK, 16, DH, device=DEVICE, dtype=torch.float16))
        slots = (torch.randperm(tokens, device=DEVICE) + 16).int()
        q, k = (rope(a, table, positions) for a in (y[:, :H], y[:, H : H + HK]))
        run = place, q, k, y[:, H + HK :], kv, slots
        want = eager.rope(y[:, : H + HK].double(), table.double(), positions)
        error = check("place q", place(*run[1:]), want[:, :H])
        error = max(error, check("place k", kv.k[slots.long() // 16, :, slots.long() % 16], want[:, H:]))
        out[f"place {tokens}"] = dict(seconds=seconds(*run), error=error)
    for rows in (1, 3) if DRY else (1, 64):
        logits = random(rows, MODEL.vocab_size, scale=3.0)
        for name, heat in {"greedy": 0.0, "top_k 50, top_p 0.9": 0.8}.items():
            full = lambda v, dtype, rows=rows: torch.full((rows,), v, dtype=dtype, device=DEVICE)
            s = Sampling(full(heat, torch.float32), full(0.9, torch.float32), full(0.0, torch.float32),
                         full(50, torch.int32), torch.rand(rows, device=DEVICE, dtype=torch.float64))
            tokens = ops.sample(logits, s).tokens.long()
            if not heat and not torch.equal(tokens, logits.float().argmax(-1)):
                raise SystemExit("greedy choice is wrong")
            if heat and not (logits.gather(1, tokens[:, None]) >= logits.topk(50).values[:, -1:]).all():
                raise SystemExit("a choice lies outside the 50 most probable")
            out[f"sample {name} {rows}"] = dict(seconds=seconds(ops.sample, logits, s))


def main() -> None:
    poison()
    kernels = Kernels(CudaDevice(DEVICE).name, Settings())
    out = {"seed": SEED, "ceilings": ceilings(), "captured sizes": list(SIZES)}
    small(kernels, out)
    products(kernels, out)
    attention(kernels, out)
    called("add_norm_kernel", "swiglu_kernel", "place_kernel", "attend_kernel", "matmul_kernel", "dense_kernel",
           "quantise_kernel", "choose_kernel")
    save("ops", out)


if __name__ == "__main__":
    main()
