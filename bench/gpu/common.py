"""What the parts of the GPU benchmark share: clock, file of results, timing on the device, a 7B model of noise."""
import json
import os
import statistics
import sys
import time
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
BEGAN = time.monotonic()


def time_left() -> float:
    """Seconds of this part's share, the command's argument."""
    return float(sys.argv[1]) - (time.monotonic() - BEGAN) if not DRY else 1e9


def path() -> Path:
    name = torch.cuda.get_device_name().lower().replace("nvidia", "").replace("geforce", "")
    return RESULTS / f"gpu-{'-'.join(name.split())}.json"


def save(part: str, section: dict) -> None:
    """Replace one section of this card's results."""
    if DRY:
        print(f"dry run of {part}: nothing is measured and nothing written")
        return
    file = path()
    results = json.loads(file.read_text()) if file.exists() else {}
    results |= {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "model": "dummy:mistral-7b, W4 g128",
        part: {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - BEGAN), **section},
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{part} stands in {file}")


def called(*names: str) -> None:
    """Fail when one of the kernels never ran."""
    if missing := [name for name in names if not calls[name]]:
        raise SystemExit(f"never called: {', '.join(missing)}; called were {dict(calls)}")


def seconds(run, *args, repeats: int = 10) -> float:
    """Median time of run(*args) on the device, its cache filled with something else before each run."""
    run(*args)
    if DRY:
        return 1.0
    other, times = _flusher(), []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        began.record()
        run(*args)
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(times)


@cache
def _flusher() -> torch.Tensor:
    return torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)


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
