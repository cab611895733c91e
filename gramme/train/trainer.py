"""Trains a decoder of `models` with plain PyTorch: AdamW, warm-up and cosine, clipping, exact resume.

Knows rows of tokens, no text. A run is a folder: config.json, log.jsonl and the newest checkpoint.
"""
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from gramme.config import ModelConfig
from gramme.kernels.load import backend
from gramme.kernels.ops import Step
from gramme.models.decoder import Decoder
from gramme.models.load import build, random_source

Batch = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> (B, n + 1) tokens, (B, n) loss weights


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch_tokens: int = 8192
    length: int = 256
    learning_rate: float = 3e-3
    floor: float = 0.02  # of the learning rate, at the end
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 0
    bf16: bool = False  # matmuls in bfloat16; weights and moments stay float32
    loss_chunk_tokens: int = 2048
    checkpoint_s: float = 60.0
    novel_share: float = 0.35  # of the batches


def new_decoder(m: ModelConfig, seed: int) -> Decoder:
    """Random weights; the two matrices that write to the residual stream start smaller by sqrt(2 L)."""
    draw = random_source(m, seed)

    def source(name: str) -> np.ndarray:
        a = draw(name)
        if a.ndim == 1:
            return np.zeros_like(a) if name.endswith("bias") else np.ones_like(a)
        return a / np.float32(math.sqrt(2 * m.layers)) if name.endswith((".o", ".down")) else a

    decoder = build(m, source, backend("eager"), "float32", m.max_positions)
    for _, a in decoder.named_weights():
        a.requires_grad_(True)
    return decoder


def rows_step(tokens: Tensor) -> Step:
    """The step of B whole sequences of one length, tokens (B, n), for kv=None."""
    rows, length = tokens.shape
    i = torch.arange(rows * length)
    starts, lengths = torch.arange(rows + 1) * length, torch.full((rows,), length)
    return Step(tokens.flatten(), i % length, i, starts, lengths, i[:0], i, length, length)


def loss(decoder: Decoder, tokens: Tensor, weights: Tensor, chunk: int) -> Tensor:
    """Weighted mean cross-entropy of the next token, nats; the logits of `chunk` tokens exist at a time."""
    x, r = decoder.hidden(rows_step(tokens[:, :-1]), None)
    targets, w, total = tokens[:, 1:].reshape(-1), weights.reshape(-1), torch.zeros(())
    for i in range(0, len(targets), chunk):
        part = slice(i, i + chunk)
        total = total + torch.utils.checkpoint.checkpoint(
            _chunk_loss, decoder, x[part], r[part], targets[part], w[part], use_reentrant=False)
    return total / w.sum()


def _chunk_loss(decoder: Decoder, x: Tensor, r: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = decoder.logits((x, r), None)
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def train(decoder: Decoder, batch: Batch, recipe: Recipe, folder: Path) -> list[dict]:
    """Run, or go on with, the training in `folder`; returns the log's records of this call."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(decoder.named_weights())
    optimizer = _optimizer(weights, recipe)
    first, log, saved_s = _resume(folder, weights, optimizer), [], time.monotonic()
    (folder / "config.json").write_text(json.dumps(asdict(recipe), indent=1))
    for step in range(first, recipe.steps):
        log.append(_train_step(decoder, optimizer, weights, batch, recipe, step))
        with (folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(log[-1]) + "\n")
        _progress(log, recipe)
        if time.monotonic() - saved_s > recipe.checkpoint_s or step + 1 == recipe.steps:
            _save(folder, weights, optimizer, step + 1)
            saved_s = time.monotonic()
    return log


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine to the floor (arXiv 1608.03983)."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * done)) / 2)


def _train_step(decoder: Decoder, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], batch: Batch,
                recipe: Recipe, step: int) -> dict:
    began = time.perf_counter()
    tokens, w = (torch.from_numpy(a) for a in batch(step))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        value = loss(decoder, tokens.long(), w, recipe.loss_chunk_tokens)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights.values(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return {"step": step, "loss": value.item(), "norm": norm.item(), "lr": learning_rate(recipe, step),
            "tokens": w.numel(), "s": time.perf_counter() - began}


def _optimizer(weights: dict[str, Tensor], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); norms, biases and embeddings do not decay."""
    decays = lambda name, a: a.ndim == 2 and name not in ("embed", "head")
    groups = [{"params": [a for n, a in weights.items() if decays(n, a)], "weight_decay": recipe.weight_decay},
              {"params": [a for n, a in weights.items() if not decays(n, a)], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _save(folder: Path, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Atomic: a kill leaves the old checkpoint or the new one. The data's position is the step."""
    tensors = {f"weight.{n}": a.detach() for n, a in weights.items()}
    for name, a in weights.items():
        state = optimizer.state[a]
        tensors |= {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
    save_file(tensors, folder / "new.safetensors", {"step": str(step)})
    os.replace(folder / "new.safetensors", folder / f"checkpoint-{step:07d}.safetensors")
    for old in sorted(folder.glob("checkpoint-*.safetensors"))[:-1]:
        old.unlink()


def _resume(folder: Path, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    if not found:
        return 0
    tensors, step = load_file(found[-1]), int(found[-1].stem.removeprefix("checkpoint-"))
    with torch.no_grad():
        for name, a in weights.items():
            a.copy_(tensors[f"weight.{name}"])
            optimizer.state[a] = {"step": torch.tensor(float(step)), "exp_avg": tensors[f"m.{name}"],
                                  "exp_avg_sq": tensors[f"v.{name}"]}
    return step


def _progress(log: list[dict], recipe: Recipe) -> None:
    recent = log[-20:]
    if len(log) % 20 and sys.stderr.isatty() is False:
        return
    rate = sum(r["tokens"] for r in recent) / sum(r["s"] for r in recent)
    mean = sum(r["loss"] for r in recent) / len(recent)
    left = (recipe.steps - log[-1]["step"] - 1) * sum(r["s"] for r in recent) / len(recent)
    line = (f"\rstep {log[-1]['step'] + 1}/{recipe.steps}  loss {mean:.3f}  norm {log[-1]['norm']:.2f}  "
            f"{rate:,.0f} tokens/s  {left:.0f} s left")
    print(line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
