"""One layer's tensors and moments to what a recipe makes of them. Knows no file."""
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gramme.config import ModelConfig
from gramme.formats.grouped import Grouped, dense, rows
from gramme.quantize import awq, solve
from gramme.quantize.calibrate import INPUTS
from gramme.quantize.recipe import Recipe, stored_dtype

ROWS = 1024
Solved = dict[str, np.ndarray | Grouped]  # a layer's tensors by our names without the prefix


def solve_layer(layer: Mapping[str, Tensor], moments: Mapping[str, Tensor], recipe: Recipe, m: ModelConfig
                ) -> tuple[Solved, dict[str, float]]:
    """(tensors, lost share of each matrix's output on the calibration text). Gains and biases are float32."""
    layer, moments, grid = dict(layer), dict(moments), recipe.grid(m)
    if recipe.method == "awq":
        awq.fold(layer, moments, m, grid, stored_dtype(m))
    solved: Solved = {name: _as_written(a, recipe, m) for name, a in layer.items() if name not in INPUTS}
    losses = {}
    for name, of in INPUTS.items():
        w = layer[name]
        if recipe.method == "rtn":
            solved[name] = solve.nearest(w, grid)
        else:
            solved[name] = (solve.gptq if recipe.method == "gptq" else solve.clipped)(w, moments[of], grid)
        losses[name] = _lost(w, solved[name], moments[of])
    return solved, losses


def _lost(w: Tensor, solved: Grouped, moments: Tensor) -> float:
    """On at most ROWS evenly spaced rows: on all of them it would take as long as GPTQ itself."""
    few = slice(None, None, -(-len(w) // ROWS))
    return solve.lost(w[few], torch.from_numpy(dense(rows(solved, few))).to(w.device), moments)


def round_layer(layer: Mapping[str, Tensor], recipe: Recipe, m: ModelConfig) -> Solved:
    """The layer in 8 bits, to the nearest."""
    grid = recipe.grid(m, 8)
    return {name: solve.nearest(a, grid) if name in INPUTS else _as_written(a, recipe, m) for name, a in layer.items()}


def _as_written(a: Tensor, recipe: Recipe, m: ModelConfig) -> np.ndarray:
    """A gain or a bias with the values that its file will hold, so that what is judged is what is saved."""
    return (a if recipe.format == "gguf" else a.to(stored_dtype(m)).float()).numpy(force=True)
