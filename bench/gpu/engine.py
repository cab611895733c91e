"""The engine on a 7B model of noise: start-up cold and warm, time to the first token, decoding by batch and context.

No text and no HTTP: from the request in `Engine.add` to its tokens. Kernel times are those of torch's profiler; their
sum is what a step would take without gaps between kernels, and what predicts slower cards.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

BEGAN = time.monotonic()
if "GRAMME_BENCH_CACHE" not in os.environ:  # nothing compiled, nothing measured yet
    os.environ["GRAMME_BENCH_CACHE"] = tempfile.mkdtemp(prefix="gramme-bench-")
os.environ["XDG_CACHE_HOME"] = os.environ["TRITON_CACHE_DIR"] = os.environ["GRAMME_BENCH_CACHE"]

import numpy as np  # noqa: E402 - the caches must be named before torch and triton are imported
import torch  # noqa: E402
from common import DRY, MODEL, called, noise_source, random_tokens, save, time_left  # noqa: E402

from gramme.config import EngineConfig, GenerationDefaults  # noqa: E402
from gramme.kernels.load import backend, machine  # noqa: E402
from gramme.llm.engine import Engine  # noqa: E402
from gramme.models.load import build  # noqa: E402
from gramme.plan.hardware import this_machine  # noqa: E402
from gramme.plan.planner import plan  # noqa: E402
from gramme.request import Request, SamplingParams  # noqa: E402
from gramme.runtime.runner import Runner  # noqa: E402

PROMPTS = (5, 20) if DRY else (128, 512, 1024, 2048, 4096)
CONTEXTS, BATCHES = ((10,), (1, 2)) if DRY else ((256, 2048, 8192), (1, 4, 16, 64))
NEW_TOKENS = 4 if DRY else 32  # behind a cached prefix
STEPS = 2 if DRY else 48
R = np.random.default_rng(time.time_ns() % 2**32)


def load() -> tuple[Engine, dict]:
    """An engine, and the seconds of its parts."""
    imported = time.monotonic()
    limits = dict(max_model_len=64, kv_tokens=512, max_num_seqs=4) if DRY else dict(
        max_model_len=MODEL.max_positions // 3, max_num_batched_tokens=4096, memory="70GB")
    config = EngineConfig(backend="cuda", dtype="float16", **limits)
    decided = plan(MODEL, config, machine("cuda", this_machine()))
    kernels = backend("cuda")
    free = kernels.device.memory()[0]
    decoder = build(MODEL, noise_source(MODEL), kernels, "float16", decided.max_model_len)
    engine = Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, decoder, kernels))
    used = free - kernels.device.memory()[0]
    parts = {"import_s": imported - BEGAN, "load_s": time.monotonic() - imported, "allocated_bytes": used,
             "planned_weights_kv_bytes": decided.ledger.weights + decided.ledger.kv}
    return engine, parts


def request(tokens: list[int], count: int) -> Request:
    request.number = getattr(request, "number", 0) + 1
    return Request(id=str(request.number), prompt_token_ids=tokens,
                   params=SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))


def first_token_s(engine: Engine, tokens: list[int]) -> float:
    began = time.monotonic()
    engine.add(request(tokens, 1))
    while engine.busy:
        engine.step()
    return time.monotonic() - began


def times_to_first_token(engine: Engine) -> dict:
    out = {}
    for n in PROMPTS:
        first_token_s(engine, random_tokens(n, R))  # compiles, measures
        fresh = [first_token_s(engine, random_tokens(n, R)) for _ in range(5)]
        prefix = random_tokens(n, R)
        first_token_s(engine, prefix)
        cached = [first_token_s(engine, prefix[:-NEW_TOKENS] + random_tokens(NEW_TOKENS, R)) for _ in range(6)]
        out[str(n)] = {"uncached_s": statistics.median(fresh), "cached_prefix_s": statistics.median(cached[1:])}
    return out


def decode(engine: Engine, batch: int, context: int) -> dict:
    """`batch` sequences with `context` tokens each: the median step, and the kernels' share of it."""
    for _ in range(batch):
        engine.add(request(random_tokens(context, R), 2 * STEPS + 8))
    while engine.scheduler.waiting or any(s.generated < 2 for s in engine.scheduler.running):
        engine.step()
    times = []
    for _ in range(STEPS):
        began = time.monotonic()
        engine.step()
        times.append(time.monotonic() - began)
    kernel_s = kernels_s(engine)
    while engine.busy:
        engine.step()
    step = statistics.median(times)
    weights = sum(layer.qkv.nbytes + layer.o.nbytes + layer.gate_up.nbytes + layer.down.nbytes
                  for layer in engine.runner.decoder.layers) + engine.runner.decoder.head.nbytes
    nbytes = weights + batch * context * MODEL.kv_token_bytes("float16")
    return {"step_s": step, "tokens_s": batch / step, "bytes_s": nbytes / step, "bytes": nbytes, "kernels_s": kernel_s,
            "kernels_share": kernel_s / step if kernel_s else None}


def kernels_s(engine: Engine, steps: int = 4) -> float:
    """Seconds of all kernels of one step."""
    if DRY:
        return 0.0
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    return sum(e.device_time_total for e in profile.key_averages()) / steps / 1e6


def capture(engine: Engine) -> None:
    while engine.idle():
        pass


def main() -> None:
    engine, start = load()
    start["first_token_s"] = first_token_s(engine, random_tokens(PROMPTS[0], R))
    start["total_s"] = time.monotonic() - BEGAN
    if "--start-only" in sys.argv:
        print(json.dumps(start))
        return
    out = {"cold": start, "ttft": times_to_first_token(engine), "decode": {}, "left out": []}
    capture(engine)
    out["ttft"] |= {f"{n} captured": v for n, v in times_to_first_token(engine).items()}
    for context in CONTEXTS:
        for batch in BATCHES:
            fits = batch * (context + 2 * STEPS + 8) <= (engine.plan.pages - 1) * engine.plan.page_size
            if not fits or time_left() < 45:
                out["left out"].append(f"decode {batch} x {context}: {'time' if fits else 'memory'}")
                continue
            decode(engine, batch, min(context, 64 if not DRY else 4))  # asks for its size of graph
            capture(engine)
            out["decode"][f"{batch} x {context}"] = decode(engine, batch, context)
    out["captured"], out["replayed"] = engine.runner.graphs.captured, engine.runner.graphs.replayed
    if not out["replayed"]:
        raise SystemExit("no captured step was replayed")
    called("add_norm_kernel", "place_kernel", "attend_kernel", "matmul_kernel", "choose_kernel")
    del engine
    torch.cuda.empty_cache()
    warm = subprocess.run([sys.executable, *sys.argv, "--start-only"], capture_output=True, text=True, timeout=120)
    if warm.returncode:
        raise SystemExit(f"the warm start failed: {warm.stderr[-2000:]}")
    out["warm"] = json.loads(warm.stdout.splitlines()[-1])
    save("engine", out)


if __name__ == "__main__":
    main()
