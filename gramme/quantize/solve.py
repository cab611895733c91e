"""From a matrix and the second moments of its inputs to codes: rounding, and rounding that repairs its own errors.

w is (N, K), moments (K, K) = sum over tokens of x x^T. What a solution loses is tr(E M E^T), the squared change of the
matrix's output on the calibration tokens, for E the error of the weights.
"""
import numpy as np
import torch
from torch import Tensor

from gramme.config import ModelError
from gramme.formats.grouped import Grouped
from gramme.quantize.grid import Fit, Grid

DAMP = 0.01  # of the mean diagonal, as in the GPTQ paper
BLOCK = 128  # columns whose errors are spread together
ROWS = 16384  # rounded at once: an embedding would be held several times over


def nearest(w: Tensor, grid: Grid) -> Grouped:
    """The plainest: each group spans its values, each value goes to the nearest code."""
    blocks = []
    for rows in w.split(ROWS):
        parts = grid.split(rows)
        fit = grid.fit(parts)
        blocks.append(grid.grouped(grid.codes(parts, fit).flatten(1), fit))
    return Grouped(*map(np.concatenate, zip(*(b[:3] for b in blocks))), grid.bits)


def clipped(w: Tensor, moments: Tensor, grid: Grid) -> Grouped:
    """To the nearest code of a group whose range was cut where that changes its output least (AWQ's clipping)."""
    parts = grid.split(w)
    fit = grid.best(parts, diagonal_blocks(moments, grid.group))
    return grid.grouped(grid.codes(parts, fit).flatten(1), fit)


def gptq(w: Tensor, moments: Tensor, grid: Grid) -> Grouped:
    """GPTQ (arXiv 2210.17323): column after column, each one's error spread over those that are still to come.

    Columns come by falling diagonal of the moments ("act-order"); groups are those of neighbours in the file, and their
    scales are found before the first column is rounded, so the order leaves no trace in the file.
    """
    parts = grid.split(w)
    fit = grid.best(parts, diagonal_blocks(moments, grid.group))
    by_group = Fit(*(a[..., 0].T.contiguous() for a in fit))  # (G, N)
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    inverse = _inverse_factor(moments[order[:, None], order])
    left = w.T[order]  # (K, N): what is done to a column, K times, is done to neighbours in memory
    codes = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        block = slice(start, start + BLOCK)
        errors = _block(left[block], codes[block], inverse[block, block], order[block], grid, by_group)
        left[block.stop :] -= inverse[block, block.stop :].T @ errors
    out = torch.empty_like(w)
    out[:, order] = codes.T
    return grid.grouped(out, fit)


def lost(w: Tensor, solved: Tensor, moments: Tensor) -> float:
    """Share of the output's energy that the error has: tr(E M E^T) / tr(W M W^T)."""
    energy = lambda a: ((a @ moments) * a).sum()
    return float(energy(solved - w) / energy(w).clamp(min=1e-30))


def diagonal_blocks(moments: Tensor, group: int) -> Tensor:
    """(K, K) -> (K / group, group, group)"""
    cut = moments.unflatten(0, (-1, group)).unflatten(2, (-1, group))
    return cut.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _block(left: Tensor, codes: Tensor, inverse: Tensor, order: Tensor, grid: Grid, fit: Fit) -> Tensor:
    """Rounds the columns of a block, (block, N), in place; (block, N) errors, each divided by its diagonal."""
    errors = torch.empty_like(left)
    for i, column in enumerate((order // grid.group).tolist()):
        group = Fit(fit.scales[column], fit.zeros[column])  # (N,)
        codes[i] = grid.codes(left[i], group)
        errors[i] = (left[i] - (codes[i] - group.zeros) * group.scales) / inverse[i, i]
        left[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
    return errors


def _inverse_factor(moments: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped moments' inverse. Inputs that were always 0 count as independent.

    Overwrites `moments`: for 14,336 columns each such matrix takes 0.8 GB.
    """
    diagonal = moments.diagonal().clone()
    for damp in (DAMP, 10 * DAMP, 100 * DAMP):
        moments.diagonal().copy_(diagonal + damp * diagonal.mean() + (diagonal == 0))
        factor, failed = torch.linalg.cholesky_ex(moments)
        if not failed:
            torch.cholesky_inverse(factor, out=moments)
            return torch.linalg.cholesky(moments, upper=True, out=factor)
    raise ModelError("the second moments of a matrix's inputs are not finite: the model's activations overflow")
