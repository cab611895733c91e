"""Runs calibration text through one layer and keeps the second moments of what each of its matrices is given.

They are all that any method needs, so one pass serves every method and every format. The stream is the float model's
own, whatever was made of earlier layers.
"""
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gramme.evals.subject import advance
from gramme.kernels.load import Backend
from gramme.kernels.ops import Ops, Step
from gramme.models.decoder import Decoder

INPUTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up", "down": "down"}


class Watch:
    """Operations that tell what a matrix is given; the decoder runs as always."""

    def __init__(self, kernels: Backend):
        self._see: Callable[[Tensor, Tensor], None] = lambda packed, x: None
        self.kernels = replace(kernels, ops=self._watched(kernels.ops))

    def layer(self, decoder: Decoder, i: int, streams: Sequence[Tensor], steps: Sequence[Step]
              ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(the residual streams after layer i, (K, K) second moments by input)."""
        layer, moments = decoder.layers[i], {}
        names = {id(getattr(layer, name).packed): name for name in ("qkv", "o", "gate_up", "down")}

        def see(packed: Tensor, x: Tensor) -> None:
            name = names[id(packed)]
            if name not in moments:
                moments[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            moments[name].addmm_(x.T, x)

        self._see = see
        try:
            return [advance(decoder, layer, x, step) for x, step in zip(streams, steps, strict=True)], moments
        finally:
            self._see = lambda packed, x: None

    def _watched(self, ops: Ops) -> Ops:
        def matmul(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
            self._see(packed, x)
            return ops.matmul(x, packed, bias)

        def gate_up(x: Tensor, packed: Tensor, bias: Tensor | None, act: str) -> Tensor:
            self._see(packed, x)
            return ops.gate_up(x, packed, bias, act)

        return replace(ops, matmul=matmul, gate_up=gate_up)
