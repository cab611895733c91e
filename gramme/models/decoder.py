"""The decoder of the Llama, Mistral and Qwen papers, in operations, weights, reshapes and slices.

Knows no numpy, no torch, no file format and no scheduler; the same class serves and is trained.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gramme.kernels.ops import KV, Array, Ops, Step
from gramme.quant.weights import Weight


@dataclass(frozen=True)
class Layer:
    attn_norm: Array  # (D,)
    qkv: Weight  # ((H + 2 Hk) Dh, D): the rows of q, then k, then v
    o: Weight  # (D, H Dh)
    mlp_norm: Array  # (D,)
    gate_up: Weight  # (2F, D): the rows of the gate, then up
    down: Weight  # (D, F)
    q_norm: Array | None = None  # (Dh,)
    k_norm: Array | None = None  # (Dh,)
    window: int | None = None  # tokens that a token sees, itself included; None: all


@dataclass(frozen=True)
class Decoder:
    ops: Ops
    embed: Weight  # (V, D)
    layers: Sequence[Layer]
    norm: Array  # (D,)
    head: Weight  # (V, D), the embedding itself when tied
    rope_table: Array  # (Lmax, Dh) cos | sin halves
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    def hidden(self, step: Step, kv: Sequence[KV] | None) -> tuple[Array, Array]:
        """The last layer's output and residual, each (T, D); their sum awaits the last norm. Writes kv."""
        x, r = self.embed.rows(step.tokens), None
        for i, layer in enumerate(self.layers):
            x, r = self.block(layer, x, r, step, None if kv is None else kv[i])
        return x, r

    def block(self, layer: Layer, x: Array, r: Array | None, step: Step, kv: KV | None) -> tuple[Array, Array]:
        """One layer: x is added to the residual stream r, both (T, D); what comes out awaits the next addition."""
        h, r = self.ops.add_norm(x, r, layer.attn_norm, self.eps, layer.qkv.act)
        x = self._attention(layer, h, step, kv)
        h, r = self.ops.add_norm(x, r, layer.mlp_norm, self.eps, layer.gate_up.act)
        return layer.down.matmul(self.ops.gate_up(h, layer.gate_up.packed, layer.gate_up.bias, layer.down.act)), r

    def logits(self, hidden: tuple[Array, Array], rows: Array | None) -> Array:
        """(N, V) for the token indices `rows` (N,); None: for all tokens."""
        x, r = hidden if rows is None else (self.ops.take(a, rows) for a in hidden)
        return self.head.matmul(self.ops.add_norm(x, r, self.norm, self.eps, self.head.act)[0])

    def normed(self, hidden: tuple[Array, Array]) -> Array:
        """(T, D) after the last norm: what embeddings are pooled from."""
        return self.ops.add_norm(*hidden, self.norm, self.eps, "float")[0]

    def named_weights(self) -> Iterator[tuple[str, Array]]:
        """Every trained array under its name; q, k, v and gate, up are one array each."""
        yield from _arrays("embed", self.embed)
        for i, layer in enumerate(self.layers):
            for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm"):
                if getattr(layer, name) is not None:
                    yield f"layers.{i}.{name}", getattr(layer, name)
            for name in ("qkv", "o", "gate_up", "down"):
                yield from _arrays(f"layers.{i}.{name}", getattr(layer, name))
        yield "norm", self.norm
        if self.head is not self.embed:
            yield from _arrays("head", self.head)

    def _attention(self, layer: Layer, h: Array, step: Step, kv: KV | None) -> Array:
        heads, kv_heads = self.heads, self.kv_heads
        y = layer.qkv.matmul(h).reshape(-1, heads + 2 * kv_heads, self.head_dim)
        q, k, v = y[:, :heads], y[:, heads : heads + kv_heads], y[:, heads + kv_heads :]
        if layer.q_norm is not None:
            q, k = self.ops.head_norm(q, layer.q_norm, self.eps), self.ops.head_norm(k, layer.k_norm, self.eps)
        q, k = self.ops.rope(q, self.rope_table, step.positions), self.ops.rope(k, self.rope_table, step.positions)
        return layer.o.matmul(self.ops.attend(q, k, v, kv, step, layer.window, layer.o.act))


def _arrays(name: str, weight: Weight) -> Iterator[tuple[str, Array]]:
    yield name, weight.packed
    if weight.bias is not None:
        yield f"{name}.bias", weight.bias
