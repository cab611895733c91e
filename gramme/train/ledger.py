"""What training holds in memory: predicted from the config, and measured on a real step.

Knows the sizes of what `ops` and the decoder keep for the backward pass.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gramme.config import ModelConfig


@dataclass(frozen=True)
class Ledger:
    """Bytes."""

    weights: int
    copies: int  # in bfloat16, with which the products are made
    gradients: int
    moments: int
    activations: int  # of one micro-batch, what backward() holds
    logits: int  # of one chunk, and their gradient in the products' type

    def lines(self) -> Iterator[str]:
        for name, size in vars(self).items():
            yield f"{name:12}{size / 1e6:9.1f} MB"


def predict(m: ModelConfig, parameters: int, rows: int, length: int, counted: int, low_bytes: int,
            chunk: int) -> Ledger:
    """For micro-batches of `rows` x `length` tokens, `counted` of which have a loss, and products whose operands have
    `low_bytes` bytes (4: no copies). `ops` keeps, for each token and layer: two residuals (float32), the products'
    inputs, q, k and v once for the scores and once turned, both halves of the gate, and the row's scores."""
    t, d, q, kv = rows * length, m.width, m.heads * m.head_dim, m.kv_heads * m.head_dim
    layer = 2 * 4 * d + 2 * 4  # what the norms keep: x and 1 / root mean square
    layer += low_bytes * (2 * d + q + m.ff_width)  # inputs of qkv, gate_up, o and down
    layer += low_bytes * (q + 2 * kv) + 2 * 4 * m.head_dim  # q, k, v as attention sees them; the angles, twice
    layer += low_bytes * 2 * m.ff_width  # gate | up
    scores = low_bytes * 2 * m.heads * length if length <= 64 else 4 * m.heads + low_bytes * q
    head = counted * (d * (4 + low_bytes) + 4)  # the last norm's input, and the gradient of its output
    ids = 8 * t
    activations = t * m.layers * (layer + scores) + head + ids + low_bytes * m.vocab_size * d
    logits = min(counted, chunk) * m.vocab_size * (4 + low_bytes)
    return Ledger(4 * parameters, 2 * parameters if low_bytes == 2 else 0, (4 + low_bytes) * parameters,
                  8 * parameters, activations, logits)


@contextmanager
def held(but: list[Tensor]) -> Iterator[Callable[[], int]]:
    """Counts the bytes that the graph built inside keeps for its backward pass, each storage once, `but` not at all."""
    known, kept = {a.untyped_storage().data_ptr() for a in but}, {}

    def pack(a: Tensor) -> Tensor:
        storage = a.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return a

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        yield lambda: sum(kept.values())
