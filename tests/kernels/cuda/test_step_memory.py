"""The arrays of a step take what the plan counts: the most that live at one time, kernels left out."""
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gramme.config import ModelConfig
from gramme.kernels.cuda import attention, heads, matmul, norm
from gramme.kernels.cuda.backend import Kernels, Settings
from gramme.kernels.cuda.choices import Choices
from gramme.kernels.load import backend
from gramme.kernels.ops import KV, Step
from gramme.models.load import build, random_source
from gramme.plan.gpu_memory import ALLOCATION, activation_bytes, scratch_bytes
from tests.kernels.cuda.steps import on, random_step

SHAPES = [dict(width=128, heads=4, kv_heads=2, head_dim=32, ff_width=352), dict(width=64, heads=8, kv_heads=8,
          head_dim=32, ff_width=96), dict(width=256, heads=2, kv_heads=1, head_dim=16, ff_width=64)]


class Living(TorchDispatchMode):
    """Bytes of the arrays made by torch while it is on, an array living as long as any view of it."""

    def __init__(self):
        super().__init__()
        self.holders, self.sizes, self.now, self.most = {}, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self._hold(t, known)
        return out

    def _hold(self, t, known):
        key = t.untyped_storage().data_ptr()
        if key in known and key not in self.holders:
            return  # a view of what was there before
        if key not in self.holders:
            self.holders[key] = 0
            self.sizes[key] = -(-t.untyped_storage().nbytes() // ALLOCATION) * ALLOCATION
            self.now += self.sizes[key]
            self.most = max(self.most, self.now)
        self.holders[key] += 1
        weakref.finalize(t, self._release, key)

    def _release(self, key):
        self.holders[key] -= 1
        if not self.holders[key]:
            del self.holders[key]
            self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens, dense", [(40, False), (256, False), (700, True)])
def test_activations_of_a_step(monkeypatch, device, shape, tokens, dense):
    for module in (attention, heads, matmul, norm):
        monkeypatch.setattr(module, "launch", lambda *args, **meta: None)
    monkeypatch.setattr(Choices, "best", lambda self, key, ways: next(iter(ways)))
    m = ModelConfig(family="llama", vocab_size=128, layers=2, norm_eps=1e-5, max_positions=1024, **shape)
    kernels = backend("cuda")
    decoder = build(m, random_source(m), kernels, "int4", 1024)
    step, pages = random_step([(0, tokens)], 16)
    step = on(device, step)
    kv = [KV(*torch.zeros(2, pages, m.kv_heads, 16, m.head_dim, dtype=torch.float16, device=device))] * m.layers
    start = decoder.embed.rows(step.tokens)  # float16, as between all operations; how it is made does not count here
    monkeypatch.setattr(type(decoder.embed), "rows", lambda self, ids: start.clone())
    with Living() as living:
        decoder.hidden(Step(**vars(step)), kv)
    assert living.most == pytest.approx(activation_bytes(m, tokens, 2, dense), rel=0.03)


def test_the_memory_that_kernels_merge_in_is_what_the_plan_counts(device):
    kernels = Kernels(device, Settings())
    assert kernels.scratch.nbytes + kernels.locks.nbytes == scratch_bytes(kernels.processors)
