"""How fast the embedded model trains beside this machine's float32 peak, measured before and after.

    python bench/training.py [--steps 60]      # needs torch; writes bench/results/training.json

The recipe is the shipped one (gramme/train/recipes/nano.toml); the tokens are drawn by lot, in rows as long as its
data's: translations of 20 to 44 tokens and pieces of novels of 256. Operations are those of the products, 6 for each
matrix entry and token. The peak is that of PyTorch's float32 products on the same cores.
"""
import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from gramme.plan.hardware import cpu_name
from gramme.train.progress import measured_peak, operations
from gramme.train.recipe import read_config
from gramme.train.trainer import train

HERE = Path(__file__).parent
RECIPE = HERE.parent / "gramme" / "train" / "recipes" / "nano.toml"
LENGTHS = (20, 28, 36, 44, 256)  # of rows, in turn
NOT_COUNTED = 10  # steps, in which torch.compile compiles


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=60)
    a = p.parse_args()
    config = read_config(RECIPE)
    recipe = replace(config.recipe, steps=a.steps + NOT_COUNTED, warmup_steps=1, decay_steps=1, check_steps=10**6)

    def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
        length, draw = LENGTHS[i % len(LENGTHS)], np.random.default_rng(i)
        shape = recipe.batch_tokens // length, length + 1
        tokens = draw.integers(config.model.vocab_size, size=shape, dtype=np.int32)
        learnt = np.arange(length) >= (0 if length == max(LENGTHS) else length // 2)  # of a dialogue the answer alone
        return tokens, np.broadcast_to(learnt, (len(tokens), length)).astype(np.float32)

    peaks = [measured_peak(recipe.workers)]
    with tempfile.TemporaryDirectory() as folder:
        train(config.model, batch, recipe, Path(folder))
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()][NOT_COUNTED:]
    peaks.append(measured_peak(recipe.workers))
    rate = median(operations(config.model, step) / step["s"] for step in log)
    record = {
        "bench": "training", "recipe": RECIPE.name, "steps": len(log), "workers": recipe.workers,
        "tokens_s": round(sum(s["tokens"] for s in log) / sum(s["s"] for s in log)), "gflop_s": round(rate / 1e9, 1),
        "fp32_peak_gflop_s": [round(peak / 1e9, 1) for peak in peaks], "share_of_peak": round(rate / max(peaks), 3),
        "products": "bfloat16" if recipe.bf16 else "float32", "torch": torch.__version__,
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
    }
    (HERE / "results" / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
