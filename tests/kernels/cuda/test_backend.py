"""The GPU's operations together: a model's tokens, the launches of a layer, one row in any company."""
import numpy as np
import pytest
import torch

from gramme.config import ConfigError, ModelConfig
from gramme.formats.grouped import Grouped
from gramme.kernels.load import backend
from gramme.kernels.ops import KV, Step
from gramme.models.load import build, random_source
from tests.kernels.cuda.close import worst_row
from tests.kernels.cuda.steps import random_step

MODEL = ModelConfig(family="llama", vocab_size=99, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ff_width=96,
                    norm_eps=1e-5, max_positions=64, qk_norm=True, qkv_bias=True, mlp_bias=True, windows=(None, 9))


def logits(kernels, decoder, step, pages, kv_dtype="float32"):
    """(T, V) of all tokens of a step; the pages hold random values where nothing was written yet."""
    put, r = kernels.device.put, np.random.default_rng(0)
    old = r.standard_normal((MODEL.layers, 2, pages, MODEL.kv_heads, 16, MODEL.head_dim)).astype(np.float32)
    kv = [KV(*(to_dtype(put(a.copy()), kv_dtype) for a in layer)) for layer in old]
    values = {name: put(v) if isinstance(v, np.ndarray) else v for name, v in vars(step).items()}
    return kernels.device.get(decoder.logits(decoder.hidden(Step(**values), kv), None))


def to_dtype(a, name):
    return a if isinstance(a, np.ndarray) else a.to(getattr(torch, name))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_float32_model_has_the_references_logits_and_greedy_tokens(deterministic):
    step, pages = random_step([(0, 7), (20, 1), (3, 3)], 16)
    outs = []
    for name in ("reference", "cuda"):
        kernels = backend(name, deterministic and name == "cuda")
        decoder = build(MODEL, random_source(MODEL, 3), kernels, "float32", 64)
        outs.append(logits(kernels, decoder, step, pages))
    assert worst_row(outs[1], outs[0]) < 1e-5
    np.testing.assert_array_equal(outs[1].argmax(-1), outs[0].argmax(-1))


@pytest.mark.parametrize("tokens", [1, 40, 200, 600])
@pytest.mark.parametrize("half", [False, True])
def test_every_regime_multiplies_alike(tokens, half):
    r = np.random.default_rng(tokens)
    scales = (r.uniform(0.5, 2, (32, 2)) / 100).astype(np.float16).astype(np.float32)
    w = Grouped(r.integers(0, 16, (32, 256), dtype=np.uint8), scales, 8 * scales, 4)
    kernels = backend("cuda", half=half)
    packed, x = kernels.pack(w), kernels.device.put(r.standard_normal((tokens, 256)).astype(np.float16))
    want = kernels.device.get(x) @ (np.repeat(scales, 128, 1) * (w.codes.astype(np.float32) - 8)).T
    gate, up = np.split(want, 2, -1)
    assert worst_row(kernels.ops.matmul(x, packed, None), want) < 5e-3
    assert worst_row(kernels.ops.gate_up(x, packed, None, "float"), gate / (1 + np.exp(-gate)) * up) < 5e-3


@pytest.mark.parametrize("dtype", ["float32", "int4", "int8"])
def test_deterministic_rows_have_the_same_bits_alone_and_in_company(dtype):
    """Every third token of a step of rows is a row of its own in another step."""
    rows = [(20, 1), (0, 9), (3, 3)]
    step, pages = random_step(rows, 16)
    kernels = backend("cuda", deterministic=True)
    decoder = build(MODEL, random_source(MODEL, 3), kernels, dtype, 64)
    together = logits(kernels, decoder, step, pages)
    for b in range(len(rows)):
        own = slice(step.starts[b], step.starts[b + 1])
        alone = Step(step.tokens[own], step.positions[own], step.slots[own], np.array([0, rows[b][1]], np.int32),
                     step.lengths[b : b + 1], step.pages[b : b + 1], None, rows[b][1], int(step.lengths[b]))
        np.testing.assert_array_equal(logits(kernels, decoder, alone, pages), together[own])


def test_without_a_gpu_the_backend_is_refused_with_the_reason(monkeypatch):
    from gramme.kernels.cuda import backend as module

    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="NVIDIA"):
        backend("cuda")
