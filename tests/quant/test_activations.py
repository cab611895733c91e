"""Activations as integers leave 99 % of every layer's output, on what a trained model makes of a text."""
from dataclasses import replace

import numpy as np
import pytest

from gramme.config import EngineConfig
from gramme.evals import texts
from gramme.evals.subject import run_layers, window_step
from gramme.formats.grouped import dense
from gramme.kernels.load import backend
from gramme.kernels.present import available
from gramme.models.load import build
from gramme.models.open import open_model
from gramme.quant.rounding import round_to_nearest
from gramme.quant.weights import Dense
from gramme.text.tokenizer import load_tokenizer

KINDS = ("qkv", "o", "gate_up", "down")


def quantised(group):
    """The embedded model in 4 bits, with the activations that the loader chooses."""
    opened, kernels = open_model(EngineConfig()), backend(next(name for name in available() if name != "cuda"))

    def source(name):
        a = opened.source(name)
        a = a if isinstance(a, np.ndarray) else dense(a)
        return round_to_nearest(a, 4, group) if a.ndim == 2 else a

    return opened, kernels, build(opened.config, source, kernels, "int4", 128)


def widened(kernels, decoder, seen):
    """The same weights in float32; `seen` gets what each product was given."""
    names = {}

    def told(op):
        def run(x, packed, *more):
            seen[names[id(packed)]] = x
            return op(x, packed, *more)
        return run

    ops = replace(decoder.ops, matmul=told(decoder.ops.matmul), gate_up=told(decoder.ops.gate_up))

    def dense(name, w):
        out = Dense(ops, kernels.pack(np.ascontiguousarray(w.dense())), w.bias)
        names[id(out.packed)] = name
        return out

    layers = [replace(layer, **{kind: dense((kind, i), getattr(layer, kind)) for kind in KINDS})
              for i, layer in enumerate(decoder.layers)]
    return replace(decoder, ops=ops, layers=layers, head=dense(("head", 0), decoder.head))


@pytest.mark.parametrize("language", texts.LANGUAGES)
@pytest.mark.parametrize("group", [32, 128])
def test_a_layer_with_integer_activations_is_within_a_hundredth(group, language):
    opened, kernels, decoder = quantised(group)
    tokens = load_tokenizer(opened.text).encode(texts.shipped("held-out", [language])[language])[:128]
    seen = {}
    plain = widened(kernels, decoder, seen)
    x, = run_layers(plain, [window_step(kernels.device, [np.array(tokens, np.int32)])])
    plain.logits((x, None), None)
    weights = {(kind, i): getattr(layer, kind) for i, layer in enumerate(decoder.layers) for kind in KINDS}
    weights["head", 0] = decoder.head
    assert seen.keys() == weights.keys()
    for name, w in weights.items():
        want = seen[name] @ w.dense().T
        error = np.linalg.norm(w.matmul(kernels.ops.quantise(seen[name], w.act)) - want) / np.linalg.norm(want)
        assert error < 0.01, f"{name} loses {error:.2%} with {w.act}"
