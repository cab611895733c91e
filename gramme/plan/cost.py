"""Bytes that a step moves and operations that it does, from a model's config alone: the one place that counts them.

A multiply-add is two operations. Caches are taken to hold activations and nothing else. Knows no machine and no time.
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from gramme.config import ModelConfig, matrix_bytes

MOST_4_BITS = 0.75  # bytes of an element, with its part of scales and zero points


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights in memory, by how a step reads them."""

    layers: int  # matrices of all layers, read once a step
    embed: int  # a row for each token
    head: int  # read when logits are wanted; 0 when it is the embedding
    vectors: int  # gains and biases

    @property
    def total(self) -> int:
        return self.layers + self.embed + self.head + self.vectors


class Product(NamedTuple):
    """Matrices that so many tokens pass."""

    elements: float
    nbytes: float
    tokens: int
    columns: float  # of a row, on average over the elements


@dataclass(frozen=True, slots=True)
class Work:
    """What one step needs, or several."""

    products: tuple[Product, ...] = ()  # all layers', the head's
    other_bytes: float = 0  # rows of the embedding, gains and biases
    kv_bytes: float = 0  # read and written
    keys: float = 0  # that are read, each with its value, in all layers and heads
    kv_elements: float = 0  # of these
    queries: float = 0  # elements of queries, in all layers
    attention_ops: float = 0
    stream: float = 0  # elements of the residual stream, once for each layer
    elements: float = 0  # touched between products: norms, rope, activations, softmax, quantisation
    tokens: int = 0
    rows: int = 0

    @property
    def weight_bytes(self) -> float:
        return self.other_bytes + sum(p.nbytes for p in self.products)

    @property
    def matmul_ops(self) -> float:
        """In products with weights."""
        return sum(2 * p.elements * p.tokens for p in self.products)

    @property
    def nbytes(self) -> float:
        return self.weight_bytes + self.kv_bytes

    @property
    def ops(self) -> float:
        return self.matmul_ops + self.attention_ops

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.ops / self.nbytes

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def weights(m: ModelConfig, dtype: str) -> Weights:
    """With every matrix stored as `dtype` that the file does not keep as integers."""
    table = matrix_bytes(m.vocab_size, m.width, dtype)
    head = 0 if m.tied_embeddings else table
    layers = sum(matrix_bytes(rows, columns, dtype) * n for rows, columns, n in m.matrices()[1:])
    vectors, elements = m.weight_bytes(dtype) - table - head - layers, m.vocab_size * m.width
    return Weights(_with_integers(layers, layer_elements(m), m.stored.layers),
                   _with_integers(table, elements, m.stored.embed),
                   _with_integers(head, elements, m.stored.head), vectors)


def form(m: ModelConfig, dtype: str) -> str:
    """What most of the layers' weights are in memory: `dtype`, or the file's own integers."""
    count, nbytes = m.stored.layers
    if 2 * count <= layer_elements(m):
        return dtype
    return "int4" if nbytes <= MOST_4_BITS * count else "int8"


def _with_integers(nbytes: int, elements: int, stored: tuple[int, int]) -> int:
    """Bytes where so many of the elements are stored in so many bytes."""
    count, integer_bytes = stored
    return nbytes - nbytes * count // elements + integer_bytes


def layer_elements(m: ModelConfig) -> int:
    """Elements of all matrices that every token passes."""
    return sum(rows * columns * n for rows, columns, n in m.matrices()[1:])


def layer_columns(m: ModelConfig) -> float:
    """Of a row of these matrices, on average over their elements."""
    return sum(rows * columns**2 * n for rows, columns, n in m.matrices()[1:]) / layer_elements(m)


def step(m: ModelConfig, w: Weights, kv_dtype: str, rows: Sequence[tuple[int, int]], outputs: int) -> Work:
    """A step whose rows are [(start, tokens), ...]: so many tokens from that position. `outputs` rows of logits."""
    tokens = sum(n for _, n in rows)
    products = [Product(layer_elements(m), w.layers, tokens, layer_columns(m))]
    if outputs:
        products.append(Product(m.vocab_size * m.width, w.head or w.embed, outputs, m.width))
    sums = [_layer_sum(m, start, n) for start, n in rows]
    kv_tokens = sum(read for _, read in sums) + tokens * m.layers
    pairs = sum(pairs for pairs, _ in sums)
    return Work(
        products=tuple(products), other_bytes=w.vectors + w.embed * tokens // m.vocab_size,
        kv_bytes=kv_tokens * m.kv_token_bytes(kv_dtype) / m.layers,
        keys=kv_tokens * m.kv_heads, kv_elements=kv_tokens * m.kv_heads * 2 * m.head_dim,
        queries=tokens * m.layers * m.heads * m.head_dim,
        attention_ops=4 * m.heads * m.head_dim * pairs, stream=tokens * m.layers * m.width,
        elements=tokens * m.layers * (12 * m.width + 4 * m.ff_width) + m.heads * pairs, tokens=tokens, rows=len(rows),
    )


def decode(m: ModelConfig, w: Weights, kv_dtype: str, contexts: Sequence[int]) -> Work:
    """One new token for each sequence, which then sees `contexts` tokens."""
    return step(m, w, kv_dtype, [(n - 1, 1) for n in contexts], len(contexts))


def prefill(m: ModelConfig, w: Weights, kv_dtype: str, tokens: int, chunk: int, cached: int = 0) -> list[Work]:
    """The steps that run a prompt of `tokens`, of which `cached` are known, in chunks; the last one gives logits."""
    starts = range(cached, tokens, chunk)
    return [step(m, w, kv_dtype, [(s, min(chunk, tokens - s))], int(s + chunk >= tokens)) for s in starts]


def _layer_sum(m: ModelConfig, start: int, n: int) -> tuple[int, int]:
    """Over all layers: pairs of a query and a key that it sees, and the tokens whose keys and values are read."""
    pairs = read = 0
    for window, layers in windows(m).items():
        a, b = seen(start, n, window)
        pairs, read = pairs + layers * a, read + layers * b
    return pairs, read


def windows(m: ModelConfig) -> dict[int | None, int]:
    """How many layers have each window."""
    counts: dict[int | None, int] = {}
    for layer in range(m.layers):
        counts[m.window(layer)] = counts.get(m.window(layer), 0) + 1
    return counts


def seen(start: int, n: int, window: int | None) -> tuple[int, int]:
    """In one layer, for n tokens from `start`: pairs of a query and a key that it sees, and the keys that are read.

    The pairs are the sum of min(start + i, window) for i = 1 .. n.
    """
    growing = n if window is None else max(0, min(n, window - start))
    pairs = growing * start + growing * (growing + 1) // 2 + (n - growing) * (window or 0)
    return pairs, start + n if window is None else min(start + n, window + n - 1)
