"""The engine on a 7B model of noise: start-up cold and warm, time to the first token, decoding by batch and context.

Cold is without compiled kernels and measured choices, warm with those that the cold start left. No text and no HTTP:
from the request in `Engine.add` to its tokens. Kernel times are those of torch's profiler; their sum is what a step
would take without gaps between kernels, and what predicts slower cards.
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

BEGAN = time.monotonic()

import numpy as np  # noqa: E402 - importing these is part of a start
import torch  # noqa: E402
from common import DRY, MODEL, called, noise_source, random_tokens, read, save, time_left  # noqa: E402

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
WARM_S = 40  # kept for the second start
R = np.random.default_rng(time.time_ns() % 2**32)


def load() -> tuple[Engine, dict]:
    """An engine, and the seconds of its parts."""
    imported = time.monotonic()
    limits = dict(max_model_len=64, kv_tokens=512, max_num_seqs=4, max_num_batched_tokens=32) if DRY else dict(
        max_model_len=MODEL.max_positions // 3, max_num_batched_tokens=4096, memory="70GB")
    config = EngineConfig(backend="cuda", dtype="float16", **limits)
    decided = plan(MODEL, config, machine("cuda", this_machine()))
    kernels = backend("cuda")
    free = kernels.device.memory()[0]
    decoder = build(MODEL, noise_source(MODEL), kernels, "float16", decided.max_model_len)
    engine = Engine(MODEL, decided, GenerationDefaults(), Runner(MODEL, decided, decoder, kernels))
    used = free - kernels.device.memory()[0]
    parts = {"import_s": imported - BEGAN, "load_s": time.monotonic() - imported, "weights_kv_bytes": used,
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
    kernel_s, launches = kernels_s(engine)
    while engine.busy:
        engine.step()
    step = statistics.median(times)
    decoder = engine.runner.decoder
    weights = sum(w.nbytes for layer in decoder.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down))
    nbytes = weights + decoder.head.nbytes + batch * context * MODEL.kv_token_bytes("float16")
    copy = read().get("ops", {}).get("ceilings", {}).get("copy_bytes_s", float("nan"))  # as the first part measured it
    return {"step_s": step, "tokens_s": batch / step, "bytes_s": nbytes / step, "bytes": nbytes, "kernels_s": kernel_s,
            "launches": launches, "kernels_share": kernel_s / step, "bandwidth_share": nbytes / step / copy,
            "bandwidth_share_of_kernels": nbytes / kernel_s / copy}


def kernels_s(engine: Engine, steps: int = 4) -> tuple[float, float]:
    """Seconds of all kernels of one step, and how many they are."""
    if DRY:
        return 1.0, 0.0
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    return sum(e.device_time_total for e in events) / steps / 1e6, sum(
        e.count for e in events if e.device_time_total) / steps


def capture(engine: Engine) -> None:
    while engine.idle():
        pass


def memory(engine: Engine) -> dict:
    """What the device has given, beside what the plan says."""
    if DRY:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"planned_bytes": engine.plan.ledger.total, "taken_bytes": total - free,
            "most_allocated_bytes": torch.cuda.max_memory_allocated(),
            "planned_without_driver_bytes": engine.plan.ledger.total - engine.plan.ledger.driver}


def main() -> None:
    warm_start = "--start-only" in sys.argv
    if not DRY and not warm_start:
        for made in Path(os.environ["GRAMME_BENCH_CACHE"]).iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    engine, start = load()
    start["first_token_s"] = first_token_s(engine, random_tokens(PROMPTS[0], R))
    start["total_s"] = time.monotonic() - BEGAN
    if warm_start:
        capture(engine)
        print(json.dumps(start | {"captured_s": time.monotonic() - BEGAN}))
        return
    out = {"cold": start, "ttft": times_to_first_token(engine), "decode": {}, "left out": []}
    save("engine", out)
    capture(engine)
    start["captured_s"] = time.monotonic() - BEGAN
    out["ttft"] |= {f"{n} captured": v for n, v in times_to_first_token(engine).items()}
    save("engine", out)
    for context in CONTEXTS:
        for batch in BATCHES:
            fits = batch * (context + 2 * STEPS + 8) <= (engine.plan.pages - 1) * engine.plan.page_size
            slowest = max((d["prefill_s"] for d in out["decode"].values()), default=0) * 4  # each case has so much more
            if not fits or time_left() < WARM_S + slowest:
                out["left out"].append(f"decode {batch} x {context}: {'time' if fits else 'memory'}")
                continue
            began = time.monotonic()
            out["decode"][f"{batch} x {context}"] = decode(engine, batch, context)
            out["decode"][f"{batch} x {context}"]["prefill_s"] = time.monotonic() - began
            save("engine", out)
    out |= {"captured": engine.runner.graphs.captured, "replayed": engine.runner.graphs.replayed,
            "halved_steps": engine.runner.halved, "memory": memory(engine)}
    if not out["replayed"]:
        raise SystemExit("no captured step was replayed")
    called("add_norm_kernel", "place_kernel", "attend_kernel", "matmul_kernel", "choose_kernel")
    del engine
    torch.cuda.empty_cache()
    warm = subprocess.run([sys.executable, *sys.argv, "--start-only"], capture_output=True, text=True,
                          timeout=None if DRY else 60)
    if warm.returncode:
        raise SystemExit(f"the warm start failed: {warm.stderr[-2000:]}")
    out["warm"] = json.loads(warm.stdout.splitlines()[-1])
    save("engine", out, finished=True)


if __name__ == "__main__":
    main()
