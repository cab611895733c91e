"""The probes of a graphics card, run on PyTorch's CPU: no card is at hand."""
from typing import get_args

import pytest

torch = pytest.importorskip("torch")

from gramme.kernels.cuda import ceilings as gpu_ceilings  # noqa: E402
from gramme.plan.gpus import Ceiling  # noqa: E402


def test_every_ceiling_of_a_card_is_measured_and_pytorch_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(gpu_ceilings, "BYTES", 1 << 16)
    monkeypatch.setattr(gpu_ceilings, "SIZE", 64)
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_accumulation
    rates = gpu_ceilings.measure("cpu", 0.0)
    assert rates.keys() == set(get_args(Ceiling)) and min(rates.values()) > 0
    assert settings.allow_fp16_accumulation == before


def test_a_pass_on_a_card_is_waited_for(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("waited"))
    assert gpu_ceilings._best("cuda", lambda: said.append("ran"), 0.0) > 0
    assert said == ["ran", "waited", "ran", "waited"]
