"""What the parts of the GPU benchmark share: clock, file of results, timing on the device, a 7B model of noise."""
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from gramme.config import ModelConfig
from gramme.formats.grouped import Grouped
from gramme.kernels.cuda.launch import calls
from gramme.models.dummy import SHAPES
from gramme.models.load import shapes

DRY = bool(os.environ.get("GRAMME_DRY"))
DEVICE = "cpu" if DRY else "cuda"
TINY = ModelConfig(family="llama", vocab_size=512, width=128, layers=1, heads=4, kv_heads=2, head_dim=32, ff_width=256,
                   norm_eps=1e-5, max_positions=512)
MODEL = TINY if DRY else SHAPES["mistral-7b"]
GROUP = 128
RESULTS = Path(__file__).parents[1] / "results"
CACHED_BYTES = 256 << 20  # more than any card's cache: what is timed goes round in so much memory
REPEATS = 10
BEGAN = time.monotonic()


def time_left() -> float:
    """Seconds of this part's share, the command's argument."""
    return float(sys.argv[1]) - (time.monotonic() - BEGAN) if not DRY else 1e9


def path() -> Path:
    name = torch.cuda.get_device_name().lower().replace("nvidia", "").replace("geforce", "")
    return RESULTS / f"gpu-{'-'.join(name.split())}.json"


def read() -> dict:
    return json.loads(path().read_text()) if not DRY and path().exists() else {}


def save(part: str, section: dict, finished: bool = False) -> None:
    """Replace one section of this card's results, all of it or nothing."""
    if DRY:
        print(f"dry run of {part}: nothing is measured and nothing written" if finished else f"{part}: {len(section)}")
        return
    results = read() | {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "model": "dummy:mistral-7b, W4 g128",
        part: {"date": time.strftime("%Y-%m-%d"), "took_s": round(time.monotonic() - BEGAN), "finished": finished,
               **section},
    }
    RESULTS.mkdir(exist_ok=True)
    new = path().with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(path())


def called(*names: str) -> None:
    """Fail when one of the kernels never ran."""
    if missing := [name for name in names if not calls[name]]:
        raise SystemExit(f"never called: {', '.join(missing)}; called were {dict(calls)}")


def seconds(run: Callable, each: Sequence[tuple]) -> float:
    """Median time on the device of one call of the many with these arguments, replayed as a CUDA graph: Python's time
    is not in it. Arguments that are to be read from memory must together be larger than the cache, see `copies`."""
    for args in each[:1] if DRY else each:
        run(*args)
    if DRY:
        return 1.0
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for args in each:
            kept = [run(*args)]
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS + 1)]
    for began, ended in pairs:
        began.record()
        graph.replay()
        ended.record()
    torch.cuda.synchronize()
    del kept
    return statistics.median(began.elapsed_time(ended) for began, ended in pairs[1:]) / 1e3 / len(each)


def copies(nbytes: float) -> int:
    """How many arguments of so many bytes each do not fit into a cache together."""
    return 1 if DRY else min(-(-CACHED_BYTES // int(nbytes)), 256)


@cache
def ceilings() -> dict[str, float]:
    """Rates of this card, measured now: bytes/s of a copy, operations/s of large products by type of the sums."""
    a = torch.zeros(1 << 16 if DRY else 1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.zeros_like(a)
    n = 64 if DRY else 8192
    x, y = (torch.randn(n, n, device=DEVICE).half() for _ in range(2))
    out = {"copy_bytes_s": 2 * a.nbytes / seconds(b.copy_, [(a,)])}
    out["fp32_ops_s"] = 2 * n**3 / seconds(torch.mm, [(x, y)])
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    out["fp16_ops_s"] = 2 * n**3 / seconds(torch.mm, [(x, y)])
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    return out


def noise_source(m: ModelConfig, seed: int = 0):
    """Random 4-bit matrices in groups of 128, one for each shape since speed does not depend on values; embedding and
    head as floats."""
    want, r = dict(shapes(m)), np.random.default_rng(seed)

    @cache
    def integers(n: int, k: int) -> Grouped:
        scales = (r.uniform(0.5, 1.5, (n, k // GROUP)) * 0.2 * k**-0.5).astype(np.float16).astype(np.float32)
        return Grouped(r.integers(0, 16, (n, k), dtype=np.uint8), scales, 8 * scales, 4)

    def source(name: str):
        shape = want[name]
        if len(shape) == 1:
            return r.normal(1, 0.1, shape).astype(np.float32)
        if name in ("embed", "head"):
            return r.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        return integers(*shape)

    return source


def random_tokens(count: int, r: np.random.Generator) -> list[int]:
    return r.integers(0, MODEL.vocab_size, count).tolist()
