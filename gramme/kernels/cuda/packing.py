"""How integer weights lie in GPU memory: blocks of P columns after each other, in a block the rows, in a row its codes.

A tile of rows of one block is then one contiguous piece, whatever part of the matrix a program reads. 4-bit codes are
planar: byte j of a block's row holds column j in its low half and column j + P / 2 in its high half, so that a kernel
multiplies two halves of the activations and never interleaves. 8-bit codes are stored less 128. Scales and offsets are
(K / G, rows) float16, offsets only where some zero point is not the middle code, and then less the middle.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from gramme.config import ROW_TILE
from gramme.formats.grouped import Grouped

BLOCK_K = 128  # columns of a block, unless the group is smaller


class Packed(NamedTuple):
    """A matrix (N, K) of 4- or 8-bit codes; rows are padded to whole ROW_TILEs with zeros."""

    codes: Tensor  # (K / P, rows, P / 2) uint8, or (K / P, rows, P) int8
    scales: Tensor  # (K / G, rows) float16
    offsets: Tensor | None  # (K / G, rows) float16, less the middle code's
    rows: int  # N
    bits: int

    @property
    def columns(self) -> int:
        return self.codes.shape[0] * self.block

    @property
    def block(self) -> int:
        return self.codes.shape[2] * (8 // self.bits)

    @property
    def group(self) -> int:
        return self.columns // self.scales.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.codes, self.scales, self.offsets) if a is not None)


def pack(w: Grouped, device: str) -> Packed:
    """Lays a matrix out on the device. Raises ValueError when groups do not divide blocks or the other way round."""
    n, k = w.shape
    block = min(w.group, BLOCK_K)
    if w.group % block or block % 32:
        raise ValueError(f"the GPU kernels take groups of 32, 64 or multiples of {BLOCK_K} columns, not {w.group}")
    scales, offsets = (_put(a, device).to(torch.float32) for a in (w.scales, w.offsets))
    offsets = (offsets - scales * (1 << w.bits - 1)).half()
    blocks = _padded(_put(w.codes, device), n).view(-1, k // block, block).transpose(0, 1)
    if w.bits == 4:
        codes = blocks[..., : block // 2] | (blocks[..., block // 2 :] << 4)
    else:
        codes = (blocks ^ 128).contiguous().view(torch.int8)  # less 128, modulo 256
    columns = lambda a: _padded(a, n).T.contiguous()
    return Packed(codes.contiguous(), columns(scales.half()), columns(offsets) if offsets.any() else None, n, w.bits)


def _put(a: object, device: str) -> Tensor:
    return torch.as_tensor(a, device=device)


def _padded(a: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(a, (0, 0, 0, -n % ROW_TILE))
