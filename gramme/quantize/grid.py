"""The values that a file format can hold: which scales and zero points a group may have, and rounding to them.

Knows no activations and no solver. Weights are (N, G, g): N rows of G groups of g columns; w is about
(codes - zeros) * scales.
"""
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gramme.config import ConfigError, ModelError
from gramme.formats.grouped import Grouped

Zeros = Literal["middle", "free"]
ROWS = 1024  # searched at once: several arrays of their size live together
SHRINKS = tuple(1 - 0.025 * i for i in range(15))  # clipping: 1 keeps a group's largest value, 0.65 cuts a third off


class Fit(NamedTuple):
    scales: Tensor  # (N, G, 1) float32, exactly as the file will store them
    zeros: Tensor  # (N, G, 1) float32, whole numbers


@dataclass(frozen=True)
class Grid:
    bits: int
    group: int
    zeros: Zeros  # "middle": always 2**(bits - 1); "free": any code
    scale_dtype: torch.dtype
    negative_scales: bool = False  # the value of largest magnitude becomes code 0, whatever its sign (GGUF's Q4_0)

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def fit(self, w: Tensor, shrink: float = 1.0) -> Fit:
        """Scales that span each group's values times `shrink`."""
        if self.zeros == "free":
            low, high = w.amin(-1, True).clamp(max=0) * shrink, w.amax(-1, True).clamp(min=0) * shrink
            scales = self._stored((high - low) / self.top)
            return Fit(scales, _divide(-low, scales).round().clamp(0, self.top))
        if self.negative_scales:
            spans = w.gather(-1, w.abs().argmax(-1, True)) / -(self.top // 2 + 1)
        else:
            spans = w.abs().amax(-1, True) * 2 / self.top
        return Fit(scales := self._stored(spans * shrink), torch.full_like(scales, self.top // 2 + 1))

    def best(self, w: Tensor, moments: Tensor) -> Fit:
        """Of SHRINKS, for each group the one whose rounding changes the group's output least.

        moments (G, g, g): second moments of the group's inputs; the change is e^T M e for the error e of a row.
        """
        return Fit(*map(torch.cat, zip(*(self._best(rows, moments) for rows in w.split(ROWS)))))

    def _best(self, w: Tensor, moments: Tensor) -> Fit:
        best, least = self.fit(w), None
        for shrink in SHRINKS:
            fit = self.fit(w, shrink)
            error = (self.round(w, fit) - w).transpose(0, 1)  # (G, N, g)
            change = (torch.bmm(error, moments) * error).sum(-1).T[..., None]
            if least is None:
                least = change
                continue
            better = change < least
            least = torch.where(better, change, least)
            best = Fit(*(torch.where(better, a, b) for a, b in zip(fit, best, strict=True)))
        return best

    def codes(self, w: Tensor, fit: Fit) -> Tensor:
        return (_divide(w, fit.scales).round() + fit.zeros).clamp(0, self.top)

    def round(self, w: Tensor, fit: Fit) -> Tensor:
        return (self.codes(w, fit) - fit.zeros) * fit.scales

    def split(self, w: Tensor) -> Tensor:
        """(N, K) -> (N, G, g)"""
        if w.shape[1] % self.group:
            raise ConfigError(f"a matrix of {w.shape[1]} columns cannot be cut into groups of {self.group}; "
                              f"--group must divide {w.shape[1]}")
        return w.unflatten(1, (-1, self.group))

    def grouped(self, codes: Tensor, fit: Fit) -> Grouped:
        """codes (N, K)"""
        scales, zeros = fit.scales[..., 0], fit.zeros[..., 0]
        return Grouped(codes.to(torch.uint8).numpy(force=True), scales.numpy(force=True),
                       (scales * zeros).numpy(force=True), self.bits)

    def _stored(self, scales: Tensor) -> Tensor:
        stored = scales.to(self.scale_dtype).float()
        if not torch.isfinite(stored).all():
            raise ModelError("weights are not finite, or too large for scales of " + str(self.scale_dtype)[6:])
        return stored


def _divide(w: Tensor, scales: Tensor) -> Tensor:
    """0 where a group's scale is 0: all of its values are."""
    return w / torch.where(scales != 0, scales, torch.inf)
