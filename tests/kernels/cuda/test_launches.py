"""What a layer starts on a GPU: at most eight launches in a captured size, and few variants for the compiler to make.

Kernels are counted here, not run; torch's own operations count as well, unless they only make or view an array.
"""
import inspect
from collections import Counter

import numpy as np
import pytest
import torch
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from gramme.config import ModelConfig
from gramme.formats.grouped import Grouped, Reordered
from gramme.kernels.cuda import attention, heads, matmul, norm
from gramme.kernels.cuda.choices import Choices
from gramme.kernels.load import backend
from gramme.kernels.ops import KV
from gramme.models.load import build, random_source
from gramme.plan.gpu_memory import SIZES
from tests.kernels.cuda.steps import on, random_step

MODEL = ModelConfig(family="llama", vocab_size=64, width=128, layers=1, heads=4, kv_heads=2, head_dim=64, ff_width=256,
                    norm_eps=1e-5, max_positions=4096, qk_norm=True, qkv_bias=True, mlp_bias=True, o_bias=True)
FREE = ("empty", "view", "slice", "select", "split", "t.", "transpose", "unsqueeze", "squeeze", "expand", "alias",
        "detach", "reshape", "permute", "unbind", "as_strided")
EIGHT = {"add_norm_kernel": 2, "matmul_kernel": 4, "place_kernel": 1, "attend_kernel": 1}


@pytest.fixture(autouse=True)
def poisoned():
    """Nothing runs, and filling memory would be counted."""


class Started(TorchDispatchMode):
    """Counts what would be launched, torch's own operations under their names."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts, self.variants = Counter(), set()
        for module in (attention, heads, matmul, norm):
            monkeypatch.setattr(module, "launch", self.launch)

    def launch(self, kernel, grid, *args, **meta):
        self.counts[kernel.fn.__name__] += 1
        plain = vars(kernel).get("kwargs", vars(kernel)).get("do_not_specialize") or ()
        parameters = inspect.signature(kernel.fn).parameters.values()
        each = zip(parameters, args, strict=True)
        made = (variant(p.annotation is tl.constexpr, p.name in plain, a) for p, a in each)
        self.variants.add((kernel.fn.__name__, *made, *meta.items()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not str(func).removeprefix("aten.").lstrip("_").startswith(FREE):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def variant(constant, plain, a):
    """What the compiler makes a kernel anew for: constants, types, whether integers are 1 or multiples of 16."""
    if constant or a is None:
        return a
    if torch.is_tensor(a):
        return a.dtype, a.data_ptr() % 16 == 0
    return None if plain or not isinstance(a, int) else (a == 1, a % 16 == 0)


def act_order(name):
    """Random 4-bit matrices whose columns lie in another order, one for all matrices of the same input."""
    a, leaf = random_source(MODEL, 3)(name), name.split(".")[-1]
    if a.ndim == 1 or leaf in ("embed", "head"):
        return a
    seed = next(i for i, leaves in enumerate(("qkv", "o", ("gate", "up"), ("down",))) if leaf in leaves)
    order = np.random.default_rng(seed).permutation(a.shape[1]).astype(np.int32)
    scales = np.full((len(a), a.shape[1] // 32), 0.01, np.float32)
    return Reordered(Grouped(np.random.default_rng(1).integers(0, 16, a.shape, np.uint8), scales, 8 * scales, 4), order)


def whole_rows(name):
    """8 bits with one scale for a whole row, as compressed-tensors has them."""
    a = random_source(MODEL, 3)(name)
    if a.ndim == 1:
        return a
    scales = np.full((len(a), 1), 0.01, np.float32)
    return Grouped(np.random.default_rng(1).integers(0, 256, a.shape, np.uint8), scales, 128 * scales, 8)


KINDS = {"int4": ("int4", random_source(MODEL, 3)), "act-order": ("float16", act_order),
         "int8": ("int8", random_source(MODEL, 3)), "W8A8": ("float16", whole_rows),
         "float16": ("float16", random_source(MODEL, 3)), "bfloat16": ("bfloat16", random_source(MODEL, 3))}


def layer(kind, deterministic=False):
    kernels = backend("cuda", deterministic=deterministic)
    dtype, source = KINDS[kind]
    return build(MODEL, source, kernels, dtype, 4096)


def block(decoder, device, rows, kv_dtype="float16"):
    """One layer of a step of such rows."""
    packed = decoder.layers[0].o.packed
    dtype = torch.bfloat16 if torch.is_tensor(packed) and packed.dtype == torch.bfloat16 else torch.float16
    step, pages = random_step(rows, 16)
    step = on(device, step)
    pages = torch.zeros(2, pages, MODEL.kv_heads, 16, MODEL.head_dim, device=device).to(getattr(torch, kv_dtype))
    scales = torch.zeros(2, *pages.shape[1:-1], device=device).half() if kv_dtype == "int8" else (None, None)
    x, r = torch.zeros(2, len(step.tokens), MODEL.width, dtype=dtype, device=device)
    return lambda: decoder.block(decoder.layers[0], x, r, step, KV(*pages, *scales))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pick", range(5))
def test_a_layer_of_a_captured_step_is_eight_launches_however_products_are_cut(monkeypatch, device, kind, pick):
    monkeypatch.setattr(Choices, "best", lambda self, key, ways: list(ways)[pick % len(ways)])
    decoder = layer(kind)
    for tokens in (1, 33, SIZES[-1]):
        for kv_dtype in ("float16", "int8", "float8_e4m3fn"):
            run = block(decoder, device, [(7, 1)] * tokens, kv_dtype)
            with Started(monkeypatch) as started:
                run()
            assert sum(started.counts.values()) <= 8, (tokens, started.counts)
            assert kind in ("float16", "bfloat16") or started.counts == EIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_a_deterministic_layer_is_eight_launches_too(monkeypatch, device, kind):
    run = block(layer(kind, deterministic=True), device, [(0, 5), (40, 1)])
    with Started(monkeypatch) as started:
        run()
    assert started.counts == EIGHT


@pytest.mark.parametrize("kind", ["int4", "int8", "float16"])
def test_steps_of_any_size_need_no_kernel_that_a_few_sizes_do_not(monkeypatch, device, kind):
    """So nothing is compiled in the middle of a request, once the captured sizes and one chunk have run."""
    monkeypatch.setattr(Choices, "best", lambda self, key, ways: next(iter(ways)))
    decoder, r = layer(kind), np.random.default_rng(0)
    few = [[(0, n)] for n in (2, 17, 64, 256, 512)] + [[(0, 1)] * n for n in (1, 17, 64, 256)] + [[(4000, 1)] * 3]
    many = [[(0, int(n))] for n in r.integers(1, 700, 20)]
    many += [[(int(n), 1) for n in r.integers(0, 300, count)] for count in r.integers(1, 256, 20)]
    variants = []
    for steps in (few, many):
        runs = [block(decoder, device, rows) for rows in steps]
        with Started(monkeypatch) as started:
            for run in runs:
                run()
        variants.append(started.variants)
    assert len(variants[0]) < 40
    assert variants[1] <= variants[0], variants[1] - variants[0]
