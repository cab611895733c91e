"""The speeds of the kernels that are here: each is measured, and a plan can be made of them."""
import math

import pytest

from gramme.bench import ceilings
from gramme.bench import speeds as probes
from gramme.kernels.present import available
from gramme.plan import speeds


@pytest.mark.skipif("cpu" not in available(), reason="the CPU kernels are not built")
def test_every_speed_is_measured(monkeypatch):
    monkeypatch.setattr(probes, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(probes, "SHAPES_OF", dict.fromkeys(speeds.PLACES, (96, 160, 256)))
    monkeypatch.setattr(probes, "KEYS", 64)
    found = probes.measure(1, 1e10, seconds=0.0)
    assert found.keys() == speeds.NAMES
    assert all(rate > 0 and math.isfinite(rate) for rate in found.values())


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(probes, "available", lambda: ("reference",))
    assert probes.measure(1, 1e10) == {}
