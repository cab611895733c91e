"""From named tensors to a Decoder, ending with proof: every parameter filled, every tensor used or skipped on purpose.

Knows the decoder's parameters and asks a `Source` for them by gramme's own names; which file they stand in is its
business. Our names: embed, head, norm and layers.I.{attn_norm, q, k, v, o, mlp_norm, gate, up, down, q_norm, k_norm},
with ".bias" after a matrix's name.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from gramme.config import INTEGER_BITS, INTEGER_GROUP, ModelConfig, ModelError, matrix_bytes
from gramme.formats.grouped import Grouped, Reordered, dense, stack, symmetric
from gramme.kernels.load import Backend
from gramme.kernels.ops import Permuted
from gramme.kernels.reference import storage_dtype
from gramme.models.decoder import Decoder, Layer
from gramme.models.rope import rope_table
from gramme.quant.rounding import round_to_nearest
from gramme.quant.weights import Dense, Integers, Weight

Matrix = np.ndarray | Grouped | Reordered
Source = Callable[[str], Matrix]
# First parts of the weights whose input has outliers: scales for 128 activations would lose about 1 % of the output or
# more (in the worst layer of versions 2 and 3 of the embedded model: down 1.27 and 1.37 %, q, k, v 1.04 and 0.86 %;
# `bench/accuracy.py`).
OUTLIERS = ("down", "q")


def shapes(m: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter that a model of this config has, under our names, in the order of the forward pass."""
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    matrices = {"q": (q, m.width), "k": (kv, m.width), "v": (kv, m.width), "o": (m.width, q),
                "gate": (m.ff_width, m.width), "up": (m.ff_width, m.width), "down": (m.width, m.ff_width)}
    biased = "qkv" * m.qkv_bias, "o" * m.o_bias, ("gate", "up", "down") if m.mlp_bias else ()
    yield "embed", (m.vocab_size, m.width)
    for i in range(m.layers):
        for name, shape in matrices.items():
            yield f"layers.{i}.{name}", shape
            if any(name in names for names in biased):
                yield f"layers.{i}.{name}.bias", shape[:1]
        yield f"layers.{i}.attn_norm", (m.width,)
        yield f"layers.{i}.mlp_norm", (m.width,)
        if m.qk_norm:
            yield f"layers.{i}.q_norm", (m.head_dim,)
            yield f"layers.{i}.k_norm", (m.head_dim,)
    yield "norm", (m.width,)
    if not m.tied_embeddings:
        yield "head", (m.vocab_size, m.width)


@dataclass(frozen=True)
class Streamed(Sequence[Layer]):
    """Layers that are read each time they are asked for: whoever runs layer by layer holds one of them."""

    read: Callable[[int], Layer]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Layer:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.read(i)


class Kept(Protocol):
    def weight(self, name: str, bias: Any, make: Callable[[], Weight]) -> Weight: ...


def build(m: ModelConfig, source: Source, backend: Backend, dtype: str, positions: int,
          streamed: bool = False, kept: Kept | None = None) -> Decoder:
    """A decoder whose matrices are stored as `dtype` and whose rope reaches `positions` tokens.

    `kept` has the weights as an earlier start laid them out, or keeps them for the next one. Matrices that come as
    integers stay so; with `dtype` "int4" or "int8" the others are rounded to the nearest codes.
    Raises ModelError, naming the parameter and both shapes, when a tensor does not fit the config.
    """
    want = dict(shapes(m))

    def read(name: str) -> Matrix:
        a = source(name)
        if a.shape != want[name]:
            raise ModelError(f"{name} has shape {list(a.shape)}, the config says {list(want[name])}")
        return a

    def vector(name: str) -> np.ndarray | None:
        return backend.device.put(read(name).astype(np.float32)) if name in want else None

    def weight(prefix: str, *parts: str) -> Weight:
        biases = [read(f"{prefix}{part}.bias").astype(np.float32) for part in parts if f"{prefix}{part}.bias" in want]
        bias = backend.device.put(np.concatenate(biases)) if biases else None
        kernels = replace(backend, permutes=()) if parts == ("embed",) else backend  # rows are read, not multiplied
        by_head = parts == ("o",) and m.head_dim % 128  # attention quantises each head by itself
        most = 32 if parts[0] in OUTLIERS or by_head else 128
        make = lambda: _weight([read(prefix + part) for part in parts], bias, kernels, dtype, most)
        return make() if kept is None else kept.weight(prefix + parts[0], bias, make)

    def layer(i: int) -> Layer:
        p = f"layers.{i}."
        return Layer(
            attn_norm=vector(p + "attn_norm"), qkv=weight(p, "q", "k", "v"), o=weight(p, "o"),
            mlp_norm=vector(p + "mlp_norm"), gate_up=weight(p, "gate", "up"), down=weight(p, "down"),
            q_norm=vector(p + "q_norm"), k_norm=vector(p + "k_norm"), window=m.window(i),
        )

    embed = weight("", "embed")
    layers = Streamed(layer, m.layers) if streamed else [layer(i) for i in range(m.layers)]
    return Decoder(
        ops=backend.ops, embed=embed, layers=layers, norm=vector("norm"),
        head=embed if m.tied_embeddings else weight("", "head"),
        rope_table=backend.device.put(rope_table(m.rope, m.head_dim, positions)),
        heads=m.heads, kv_heads=m.kv_heads, head_dim=m.head_dim, eps=m.norm_eps,
    )


def as_floats(source: Source) -> Source:
    """The same tensors, integers as the floats that they stand for, for which no kernel rounds activations."""
    def read(name: str) -> np.ndarray:
        a = source(name)
        return a if isinstance(a, np.ndarray) else dense(a)

    return read


def _weight(parts: Sequence[Matrix], bias: np.ndarray | None, backend: Backend, dtype: str, most: int) -> Weight:
    """One weight of matrices below each other, for activations of which at most so many share a scale."""
    bits = INTEGER_BITS.get(dtype)
    if bits is not None:
        parts = [round_to_nearest(w, bits, INTEGER_GROUP) if isinstance(w, np.ndarray) else w for w in parts]
    parts, order = _in_one_order(parts, backend)
    parts = [_fitting(w, backend.group) for w in parts]
    if not all(isinstance(w, Grouped) for w in parts):
        rows = [dense(w) if isinstance(w, Grouped) else w for w in parts]
        whole = rows[0] if len(rows) == 1 else np.concatenate(rows)
        stored = storage_dtype(dtype if bits is None else "float32")
        return Dense(backend.ops, backend.pack(whole.astype(stored, copy=False)), bias)
    whole = stack(parts)
    act = _act(whole.group, most) if whole.bits in backend.integer_acts else "float"
    if order is not None:
        act = Permuted(act, *map(backend.device.put, (order, np.argsort(order).astype(np.int32))))
    nbytes = matrix_bytes(*whole.shape, f"int{whole.bits}", whole.group, not symmetric(whole))
    return Integers(backend.ops, backend.pack(whole), whole.shape, nbytes, act, bias)


def _in_one_order(parts: Sequence[Matrix], backend: Backend) -> tuple[list[Matrix], np.ndarray | None]:
    """The parts as stored and the order of their columns, if it is one for all and the backend permutes activations for
    such weights and holds groups of this size; else the parts in their own order, rounded again."""
    orders = {w.order.tobytes() if isinstance(w, Reordered) else None for w in parts}
    held = all(isinstance(w, Reordered) and w.stored.group % backend.group == 0 and w.stored.bits in backend.permutes
               for w in parts)
    if held and len(orders) == 1:
        return [w.stored for w in parts], parts[0].order
    return [_rounded(w) if isinstance(w, Reordered) else w for w in parts], None


def _fitting(w: Matrix, group: int) -> Matrix:
    """Rounded again where the kernels do not hold groups of this size."""
    return _rounded(w) if isinstance(w, Grouped) and w.group % group else w


def _rounded(w: Grouped | Reordered) -> Matrix:
    """8 bits in groups of 32: the error of Q6_K, against the weights that it was made of, grows by 2 %, that of 4 bits
    by less than 0.1 % (normal weights). Rows of no whole number of groups become floats."""
    a = dense(w)
    return a if a.shape[1] % INTEGER_GROUP else round_to_nearest(a, 8, INTEGER_GROUP)


def _act(group: int, most: int) -> str:
    """The form of activations for weights in groups of so many columns."""
    return f"int8/{next((size for size in (128, 32) if size <= most and group % size == 0), group)}"


def random_source(m: ModelConfig, seed: int = 0) -> Source:
    """Random weights of a sensible size for every parameter, the same for the same seed: models without a download."""
    want = dict(shapes(m))
    order = {name: i for i, name in enumerate(want)}

    def source(name: str) -> np.ndarray:
        rng = np.random.default_rng((seed, order[name]))
        if len(want[name]) == 1:
            return rng.normal(0 if name.endswith("bias") else 1, 0.1, want[name]).astype(np.float32)
        values = rng.standard_normal(want[name], dtype=np.float32)
        values *= np.float32(want[name][1] ** -0.5)
        return values

    return source
