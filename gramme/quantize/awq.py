"""AWQ (arXiv 2306.00978): channels that matter are scaled up before rounding, the inverse folded into what feeds them.

Where the paper's code measures a block's output on stored activations, this uses their second moments, which say
exactly what a matrix's output loses: tr(E M E^T).
"""
from collections.abc import Mapping

import torch
from torch import Tensor

from gramme.config import ModelConfig
from gramme.quantize.grid import Grid
from gramme.quantize.solve import lost

STEPS = 20  # exponents tried between 0, no scaling, and 1
SEARCH_ROWS = 1024  # of a matrix, evenly spaced: enough to choose one exponent for its columns
# (what is divided, matrices whose columns are multiplied, their input's name)
FOLDS = (("v", ("o",), "o"), ("up", ("down",), "down"), ("attn_norm", ("q", "k", "v"), "qkv"),
         ("mlp_norm", ("gate", "up"), "gate_up"))


def fold(layer: dict[str, Tensor], moments: dict[str, Tensor], m: ModelConfig, grid: Grid, gain: torch.dtype) -> None:
    """Scales a layer in place, tensors under our names and moments by input; the layer computes what it did before.

    Gains are rounded to `gain`, the dtype in which they are written, before the scale is derived from them, so that
    rounding them loses nothing; biases are rounded to it.
    """
    for before, matrices, name in FOLDS:
        repeats = m.heads // m.kv_heads if before == "v" else 1
        scale = _search({k: layer[k] for k in matrices}, moments[name], grid, repeats, m.head_dim)
        if before.endswith("norm"):
            old = layer[before]
            layer[before] = (old / scale).to(gain).float()
            scale = torch.where(layer[before] != 0, old / layer[before], 1)
        else:
            layer[before] = layer[before] / scale[:, None]
            if f"{before}.bias" in layer:
                layer[f"{before}.bias"] = (layer[f"{before}.bias"] / scale).to(gain).float()
        columns = _repeated(scale, repeats, m.head_dim)
        for k in matrices:
            layer[k] = layer[k] * columns
        moments[name] = moments[name] / columns / columns[:, None]


def _search(matrices: Mapping[str, Tensor], moments: Tensor, grid: Grid, repeats: int, head_dim: int) -> Tensor:
    """(channels of the previous operation,): typical magnitude of the input to the power that loses least."""
    rows = torch.cat([w[:: -(-len(w) // SEARCH_ROWS)] for w in matrices.values()])
    power = moments.diagonal().unflatten(0, (-1, repeats, head_dim)).mean(1).flatten() if repeats > 1 else (
        moments.diagonal())
    size = power.sqrt().clamp(min=1e-4 * float(power.mean().sqrt()) or 1)
    best, least = torch.ones_like(size), None
    for step in range(STEPS):
        scale = size ** (step / STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        columns = _repeated(scale, repeats, head_dim)
        parts = grid.split(rows * columns)
        loss = lost(rows, grid.round(parts, grid.fit(parts)).flatten(1) / columns, moments)
        if least is None or loss < least:
            best, least = scale, loss
    return best


def _repeated(scale: Tensor, repeats: int, head_dim: int) -> Tensor:
    """A KV head's channels, once for each of the query heads that read it."""
    return scale.unflatten(0, (-1, 1, head_dim)).expand(-1, repeats, -1).flatten() if repeats > 1 else scale
