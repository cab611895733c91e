"""Which rule moves which weight: Muon or AdamW the matrices, AdamW the rest; and how the rate changes over a run.

Knows named tensors, no model and no data.
"""
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gramme.train.recipe import Recipe

QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz step, as published: singular values end between 0.7 and 1.2
Map = Callable[[Callable[[int], Tensor], Iterable[int]], Iterator[Tensor]]


def schedule(r: Recipe, step: int) -> float:
    """Share of the highest rate: linear warm-up, then a cosine (arXiv 1608.03983), or level and straight down over the
    last `decay_steps` (arXiv 2405.18392)."""
    if step < r.warmup_steps:
        return (step + 1) / r.warmup_steps
    if r.schedule == "cosine":
        done = (step - r.warmup_steps) / max(1, r.steps - r.warmup_steps)
        return r.floor + (1 - r.floor) * (1 + math.cos(math.pi * done)) / 2
    left = (r.steps - step) / r.decay_steps if r.decay_steps else 1.0
    return r.floor + (1 - r.floor) * min(1.0, left)


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix (Jordan 2024, kellerjordan.github.io/posts/muon).

    Matrices that stand above each other in one array, (q, k, v) and (gate, up), are made orthogonal each for itself:
    `heights` says how many rows each has. A step is scaled by sqrt(max(1, N / K)), so that one rate suits every shape.
    `each` may map in several threads.
    """

    def __init__(self, params: Sequence[Tensor], heights: Sequence[Sequence[int]], lr: float, weight_decay: float,
                 momentum: float = 0.95, each: Map = map):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.heights, self.each = heights, each

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            updates = self.each(lambda i, group=group: self._update(group, i), range(len(self.heights)))
            for a, update in zip(group["params"], updates, strict=True):
                a.mul_(1 - group["lr"] * group["weight_decay"])
                a.add_(update, alpha=-group["lr"])

    def _update(self, group: dict, i: int) -> Tensor:
        with torch.no_grad():
            a = group["params"][i]
            m = self.state[a].setdefault("momentum", torch.zeros_like(a))
            m.lerp_(a.grad, 1 - group["momentum"])
            ahead = a.grad.lerp(m, group["momentum"])  # Nesterov
            return torch.cat([orthogonalise(part) * math.sqrt(max(1.0, part.shape[0] / part.shape[1]))
                              for part in ahead.split(list(self.heights[i]))])


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of g = U S V^T, (N, K); the products are made in bfloat16, as published."""
    a, b, c = QUINTIC
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float()


def optimizers(weights: dict[str, Tensor], heights: dict[str, Sequence[int]], recipe: Recipe,
               each: Map = map) -> list[torch.optim.Optimizer]:
    """`heights` names the matrices. AdamW: arXiv 1711.05101; norms, biases and embeddings do not decay."""
    inner, outer = [weights[n] for n in heights], [a for n, a in weights.items() if n not in heights]
    groups = [{"params": outer, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = []
    if recipe.muon_rate:
        found.append(Muon(inner, list(heights.values()), recipe.muon_rate, recipe.weight_decay, each=each))
    else:
        groups.append({"params": inner, "weight_decay": recipe.weight_decay})
    found.append(torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True))
    for group in (g for o in found for g in o.param_groups):
        group["highest"] = group["lr"]
    return found


def set_rates(found: Iterable[torch.optim.Optimizer], share: float) -> None:
    for group in (g for o in found for g in o.param_groups):
        group["lr"] = group["highest"] * share
