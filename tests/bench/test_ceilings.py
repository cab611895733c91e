"""Probes of the machine: what they read and copy is all there, and what is not here is left out."""
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gramme.bench import ceilings
from gramme.cli.main import run
from gramme.kernels import cuda
from gramme.kernels.reference import NumpyDevice
from gramme.plan import hardware
from gramme.plan.driver import OwnCard
from gramme.plan.gpus import gpu


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


def test_a_card_is_measured_by_its_name_and_what_it_does_not_allow_is_left_out(monkeypatch):
    asked = []

    def probes(device, seconds):
        asked.append(device)
        if len(asked) > 1:
            raise RuntimeError("out of memory")
        return {"bandwidth": 9e11}

    card = SimpleNamespace(device=Copies())
    monkeypatch.setattr(cuda, "ceilings", SimpleNamespace(measure=probes), raising=False)
    monkeypatch.setitem(sys.modules, "gramme.kernels.cuda.ceilings", cuda.ceilings)
    monkeypatch.setattr(ceilings, "_load", lambda name, threads: card if name == "cuda" else None)
    monkeypatch.setattr(ceilings, "own_card", lambda: OwnCard("NVIDIA RTX 9090", 1, 2))
    found = ceilings.measure(1, seconds=0.0, disk=False)
    assert found["NVIDIA RTX 9090: bandwidth"] == 9e11 and asked == ["cuda"]
    assert ceilings.measure(1, seconds=0.0, disk=False).keys() == found.keys() - {"NVIDIA RTX 9090: bandwidth"}


def test_what_was_measured_of_a_card_comes_before_its_data_sheet():
    host = hardware.Hardware(cores=2, free_bytes=1 << 34, source="measured 2026", rates={
        hardware.card_rate("RTX 4090", "bandwidth"): 9e11, hardware.card_rate("NVIDIA new", "int8"): 3e14})
    one, same, other, new = (hardware.own(host, name, 1 << 30, 2 << 30) for name in (
        "RTX 4090", "RTX 4090", "RTX 3090", "NVIDIA new"))
    sheet = hardware.card(gpu("RTX 4090"))
    assert one.rates == {**sheet.rates, "bandwidth": 9e11} and one.source == "measured 2026" and one == same
    assert other.source == "data sheet" and other.rates == hardware.card(gpu("RTX 3090")).rates
    assert (new.rates, new.source, new.free_bytes) == ({"int8": 3e14}, "measured 2026", 1 << 30)
