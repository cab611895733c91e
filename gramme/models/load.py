"""From named tensors to a Decoder, ending with proof: every parameter filled, every tensor used or skipped on purpose.

Knows the decoder's parameters and asks a `Source` for them by gramme's own names; which file they stand in is its
business. Our names: embed, head, norm and layers.I.{attn_norm, q, k, v, o, mlp_norm, gate, up, down, q_norm, k_norm},
with ".bias" after a matrix's name.
"""
from collections.abc import Callable, Iterator

import numpy as np

from gramme.config import ModelConfig, ModelError
from gramme.kernels.load import Backend
from gramme.kernels.reference import storage_dtype
from gramme.models.decoder import Decoder, Layer
from gramme.models.rope import rope_table
from gramme.quant.weights import Dense

Source = Callable[[str], np.ndarray]


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


def build(m: ModelConfig, source: Source, backend: Backend, dtype: str, positions: int) -> Decoder:
    """A decoder whose matrices are stored as `dtype` and whose rope reaches `positions` tokens.

    Raises ModelError, naming the parameter and both shapes, when a tensor does not fit the config.
    """
    want, storage = dict(shapes(m)), storage_dtype(dtype)

    def read(name: str) -> np.ndarray:
        a = source(name)
        if a.shape != want[name]:
            raise ModelError(f"{name} has shape {list(a.shape)}, the config says {list(want[name])}")
        return a

    def gain(name: str) -> np.ndarray | None:
        return backend.device.put(read(name).astype(np.float32)) if name in want else None

    def weight(prefix: str, *parts: str) -> Dense:
        rows = [read(prefix + part).astype(storage, copy=False) for part in parts]
        biases = [read(f"{prefix}{part}.bias").astype(np.float32) for part in parts if f"{prefix}{part}.bias" in want]
        bias = backend.device.put(np.concatenate(biases)) if biases else None
        return Dense(backend.ops, backend.device.put(rows[0] if len(rows) == 1 else np.concatenate(rows)), bias)

    def layer(i: int) -> Layer:
        p = f"layers.{i}."
        return Layer(
            attn_norm=gain(p + "attn_norm"), qkv=weight(p, "q", "k", "v"), o=weight(p, "o"),
            mlp_norm=gain(p + "mlp_norm"), gate_up=weight(p, "gate", "up"), down=weight(p, "down"),
            q_norm=gain(p + "q_norm"), k_norm=gain(p + "k_norm"), window=m.window(i),
        )

    embed = weight("", "embed")
    return Decoder(
        ops=backend.ops, embed=embed, layers=[layer(i) for i in range(m.layers)], norm=gain("norm"),
        head=embed if m.tied_embeddings else weight("", "head"),
        rope_table=backend.device.put(rope_table(m.rope, m.head_dim, positions)),
        heads=m.heads, kv_heads=m.kv_heads, head_dim=m.head_dim, eps=m.norm_eps,
    )


def random_source(m: ModelConfig, seed: int = 0) -> Source:
    """Random weights of a sensible size for every parameter, the same for the same seed: models without a download."""
    want = dict(shapes(m))
    order = {name: i for i, name in enumerate(want)}

    def source(name: str) -> np.ndarray:
        rng = np.random.default_rng((seed, order[name]))
        if len(want[name]) == 1:
            return rng.normal(0 if name.endswith("bias") else 1, 0.1, want[name]).astype(np.float32)
        return rng.standard_normal(want[name], dtype=np.float32) * np.float32(want[name][1] ** -0.5)

    return source
