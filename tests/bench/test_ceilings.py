"""Probes of the machine: what they read and copy is all there, and what is not here is left out."""
import json

import numpy as np
import pytest

from gramme.bench import ceilings
from gramme.cli.main import run
from gramme.kernels.reference import NumpyDevice
from gramme.plan import hardware


class Copies(NumpyDevice):
    """A device with memory of its own, that counts what comes to it."""

    nbytes = waits = 0

    def put(self, host, into=None):
        self.nbytes += host.nbytes
        if into is None:
            return host.copy()
        into[...] = host
        return into

    def get(self, a):
        self.waits += 1
        return a


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    for name in ("MEMORY_BYTES", "FILE_BYTES", "LINK_BYTES"):
        monkeypatch.setattr(ceilings, name, 1 << 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_copy_is_whole_and_waited_for():
    device = Copies()
    assert ceilings.copy_to(device, 0.0) > 0
    assert device.nbytes == (1 + device.waits) << 20 and device.waits >= 2


def test_what_is_measured_is_dated_kept_and_used(monkeypatch, capsys):
    made = {"bandwidth": 12e9, "float32": 1e11, "int8": 2e11, "disk": 3e9, "link": 9e9}
    monkeypatch.setattr("gramme.cli.doctor.measure_speeds", lambda cores, bandwidth: {})
    monkeypatch.setattr("gramme.cli.doctor.measure", lambda cores: made)
    assert run(["doctor", "--measure", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["ceilings"]
    assert shown.pop("source").startswith("measured 20") and shown["link"] == "9.0 GB/s" and len(shown) == len(made)
    assert hardware.this_machine().rate("disk") == 3e9
    assert run(["doctor", "--json"]) == 0 and "9.0 GB/s" in capsys.readouterr().out


def test_a_machine_without_a_card_has_no_way_to_one(monkeypatch):
    monkeypatch.setattr(ceilings, "available", lambda: ("reference",))
    rates = ceilings.measure(1, seconds=0.0, disk=False)
    assert rates.keys() == {"bandwidth", "float32"} and np.isfinite(list(rates.values())).all()
