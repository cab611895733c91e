"""Trains a decoder of `models` with plain PyTorch: AdamW, warm-up and decay, clipping, exact resume.

Knows rows of tokens, no text. A run is a folder: recipe.json, ledger.json, log.jsonl and the newest checkpoint.
"""
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from gramme.config import ModelConfig
from gramme.kernels.load import backend
from gramme.kernels.ops import Step
from gramme.models.decoder import Decoder
from gramme.models.load import Source as Weights
from gramme.models.load import as_floats, build, random_source
from gramme.train import checkpoint
from gramme.train.ledger import held, predict
from gramme.train.ops import PLAIN, Bodies, ChunkedCrossEntropy, bodies, training_ops
from gramme.train.optimizer import optimizers, schedule, set_rates
from gramme.train.progress import Line, measured_peak, operations
from gramme.train.recipe import Recipe
from gramme.train.rows import Batch

Source = Callable[[int], Batch]  # number of a micro-batch -> its rows


def new_decoder(m: ModelConfig, start: Weights, dtype: str = "float32", b: Bodies = PLAIN) -> Decoder:
    """The weights of `start` as floats that take gradients."""
    eager = backend("eager")
    fast = replace(eager, ops=training_ops(eager.ops, getattr(torch, dtype), b))
    decoder = build(m, as_floats(start), fast, dtype, m.max_positions)
    for _, a in decoder.named_weights():
        a.requires_grad_(True)
    return decoder


def fresh(m: ModelConfig, seed: int) -> Weights:
    """Random weights; the two matrices that write to the residual stream start smaller by sqrt(2 L)."""
    draw = random_source(m, seed)

    def source(name: str) -> np.ndarray:
        a = draw(name)
        if a.ndim == 1:
            return np.zeros_like(a) if name.endswith("bias") else np.ones_like(a)
        return a / np.float32(math.sqrt(2 * m.layers)) if name.endswith((".o", ".down")) else a

    return source


def rows_step(tokens: Tensor) -> Step:
    """The step of B whole sequences of one length, tokens (B, n), for kv=None."""
    rows, length = tokens.shape
    i = torch.arange(rows * length)
    starts, lengths = torch.arange(rows + 1) * length, torch.full((rows,), length)
    return Step(tokens.flatten(), i % length, i, starts, lengths, i[:0], i, length, length)


def loss(decoder: Decoder, batch: Batch, chunk: int, b: Bodies = PLAIN) -> Tensor:
    """Weighted sum of the next tokens' cross-entropy, nats; tokens of weight 0 never reach the head."""
    tokens, weights = torch.from_numpy(batch[0]).long(), torch.from_numpy(batch[1]).flatten()
    x, r = decoder.hidden(rows_step(tokens[:, :-1]), None)
    rows = weights.nonzero()[:, 0]
    targets, normed = tokens[:, 1:].flatten()[rows], decoder.normed((x[rows], r[rows]))
    return ChunkedCrossEntropy.apply(normed, decoder.head.packed, targets, weights[rows], chunk, b)


@dataclass(frozen=True)
class Trainer:
    """The weights that are optimised are float32; with bf16 the products are made on a copy of them."""

    recipe: Recipe
    decoder: Decoder  # whose weights are optimised
    worker: Decoder  # which runs: the same, or its copy in bfloat16
    optimizers: Sequence[torch.optim.Optimizer]
    pool: ThreadPoolExecutor
    bodies: Bodies

    @classmethod
    def new(cls, m: ModelConfig, recipe: Recipe, pool: ThreadPoolExecutor, start: Weights | None = None) -> "Trainer":
        b, start = bodies(recipe.compiled), start or fresh(m, recipe.seed)
        decoder = new_decoder(m, start, b=b)
        worker = new_decoder(m, start, "bfloat16", b) if recipe.bf16 else decoder
        rules = optimizers(dict(decoder.named_weights()), heights(m), recipe, pool.map)
        return cls(recipe, decoder, worker, rules, pool, b)

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.decoder.named_weights())

    def step(self, number: int, source: Source) -> dict[str, float]:
        """The micro-batches run side by side, and their gradients are added in order: the sum does not depend on how
        many threads made it."""
        began, share, recipe = time.perf_counter(), schedule(self.recipe, number), self.recipe
        set_rates(self.optimizers, share)
        self.refresh()
        parts = [source(number * recipe.micro_batches + i) for i in range(recipe.micro_batches)]
        counted, value = float(sum(weights.sum() for _, weights in parts)), 0.0
        for nats, gradients in self.pool.map(lambda part: self._gradients(part, counted), parts):
            value += nats
            for a, g in zip(self.weights.values(), gradients, strict=True):
                a.grad = g.float() if a.grad is None else a.grad.add_(g)
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {"step": number, "loss": value, "norm": norm.item(), "lr": recipe.learning_rate * share,
                "tokens": sum(weights.size for _, weights in parts), "counted": counted,
                "s": time.perf_counter() - began}

    def held_out(self, batches: Sequence[Batch]) -> float:
        """Nats a token."""
        self.refresh()
        with torch.no_grad():
            nats = sum(self._loss(batch).item() for batch in batches)
        return nats / float(sum(weights.sum() for _, weights in batches))

    def refresh(self) -> None:
        """The worker's weights become those that were optimised."""
        if self.worker is not self.decoder:
            with torch.no_grad():
                for (_, low), a in zip(self.worker.named_weights(), self.weights.values(), strict=True):
                    low.copy_(a)

    def ledger(self, m: ModelConfig, batch: Batch) -> dict[str, dict[str, int]]:
        """Predicted and measured bytes of a micro-batch."""
        weights = list(self.weights.values())
        low = [a for _, a in self.worker.named_weights()]
        with held(weights + low + [self.worker.rope_table]) as count:
            self._loss(batch)
            activations = count()
        predicted = predict(m, sum(a.numel() for a in weights), *batch[1].shape, int((batch[1] > 0).sum()),
                            2 if self.recipe.bf16 else 4, self.recipe.loss_chunk_tokens)
        return {"predicted": asdict(predicted), "measured": {"activations": activations}}

    def _loss(self, batch: Batch) -> Tensor:
        return loss(self.worker, batch, self.recipe.loss_chunk_tokens, self.bodies)

    def _gradients(self, batch: Batch, counted: float) -> tuple[float, tuple[Tensor, ...]]:
        value = self._loss(batch) / counted
        return value.item(), torch.autograd.grad(value, [a for _, a in self.worker.named_weights()])


def train(m: ModelConfig, source: Source, recipe: Recipe, folder: Path, held_out: Sequence[Batch] = (),
          start: Weights | None = None) -> Decoder:
    """Run, or go on with, the training in `folder`; a new run begins with the weights of `start`, or random ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    with ThreadPoolExecutor(recipe.workers) as pool:
        trainer, saved_s = Trainer.new(m, recipe, pool, start), time.monotonic()
        first = checkpoint.resume(folder, trainer.weights, trainer.optimizers)
        (folder / "ledger.json").write_text(json.dumps(trainer.ledger(m, source(0)), indent=1))
        line = Line(sys.stderr, recipe.steps, measured_peak(recipe.workers))
        with _log(folder / "log.jsonl", first) as log:
            for number in range(first, recipe.steps):
                record, last = trainer.step(number, source), number + 1 == recipe.steps
                if held_out and (last or number % recipe.check_steps == 0):
                    record["held_out"] = trainer.held_out(held_out)
                print(json.dumps(record), file=log, flush=True)
                line.show(record, operations(m, record))
                if last or time.monotonic() - saved_s > recipe.checkpoint_s:
                    checkpoint.save(folder, trainer.weights, trainer.optimizers, number + 1)
                    saved_s = time.monotonic()
    return trainer.decoder


def _log(file: Path, first: int) -> TextIO:
    """The log, without the steps from `first` on that a kill undid."""
    if file.exists():
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:first]))
    return file.open("a")


def heights(m: ModelConfig) -> dict[str, Sequence[int]]:
    """Every matrix but the embeddings, with the rows of the matrices that stand in it above each other."""
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    one = {"qkv": (q, kv, kv), "o": (m.width,), "gate_up": (m.ff_width, m.ff_width), "down": (m.width,)}
    return {f"layers.{i}.{name}": rows for i in range(m.layers) for name, rows in one.items()}
