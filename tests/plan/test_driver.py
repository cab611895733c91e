"""What a driver says of its card becomes a plan on that machine, without PyTorch; the driver is pretended."""
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gramme.cli.main import run
from gramme.config import ConfigError
from gramme.kernels import present
from gramme.plan import driver
from gramme.plan.driver import OwnCard, energy, own_card


class Nvml:
    """libnvidia-ml as far as it is used; `fails` names the call that returns an error."""

    def __init__(self, fails=None, name=b"NVIDIA GeForce RTX 4090", free=20 << 30, total=24 << 30):
        self.fails, self.name, self.free, self.total, self.index, self.spent_mj = fails, name, free, total, None, 5000

    def __getattr__(self, call):
        return lambda *args: 999 if call == self.fails else getattr(self, f"_{call}")(*args)

    def _nvmlInit_v2(self):
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.index = index
        return 0

    def _nvmlDeviceGetName(self, handle, buffer, size):
        buffer.value = self.name
        return 0

    def _nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.free, memory._obj.used = self.total, self.free, self.total - self.free
        return 0

    def _nvmlDeviceGetTotalEnergyConsumption(self, handle, count):
        count._obj.value = self.spent_mj
        return 0


@pytest.fixture
def lib(monkeypatch):
    """A machine with such a driver, the files that say so, and the packages that its kernels need."""
    made = Nvml()
    monkeypatch.setattr(driver, "load", lambda name: made)
    monkeypatch.setattr(present, "DRIVER", SimpleNamespace(exists=lambda: True))
    monkeypatch.setattr(present, "find_spec", lambda name: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def planned(capsys, *words):
    code = run(["plan", *words, "--no-calibration"])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_machine_with_a_card_is_planned_on_its_card_with_the_memory_that_is_free(lib, capsys):
    code, out, _ = planned(capsys, "dummy:1b", "--json")
    made = json.loads(out)
    assert code == 0 and made["recommended"]["backend"] == "cuda" and made["ledger"]["budget"] == 20 << 30
    assert made["hardware"] == {"name": "RTX 4090", "rates": "data sheet"}
    named = json.loads(planned(capsys, "dummy:1b", "--json", "--gpu", "rtx4090")[1])
    assert named["predicted"]["tpot_ms"] == made["predicted"]["tpot_ms"] and named["ledger"]["budget"] == 24 << 30


def test_its_processor_is_planned_where_that_is_asked(lib, capsys):
    for words in (("--cpu",), ("--backend", "reference")):
        code, out, _ = planned(capsys, "dummy:1b", "--json", *words)
        assert code == 0 and json.loads(out)["recommended"]["backend"] != "cuda"
        assert "RTX" not in json.loads(out)["hardware"]["name"]


def test_what_is_shown_of_a_model_is_planned_on_the_card_too(lib, capsys):
    assert run(["show", "dummy:tiny", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["plan"]
    assert made["backend"] == "cuda" and made["ledger"]["budget"] == 20 << 30


@pytest.mark.parametrize("words, said", [
    (("--gpu", "rtx4090", "--backend", "cpu"), "--gpu and --backend cpu exclude each other"),
    (("--gpu", "rtx4090", "--backend", "reference"), "exclude each other"),
    (("--cpu", "--backend", "cuda"), "--cpu and --backend cuda exclude each other"),
    (("--backend", "cuda"), "--gpu NAME plans for one"),
])
def test_a_card_that_contradicts_or_is_not_here_is_one_line(capsys, monkeypatch, words, said):
    monkeypatch.setattr(driver, "first_card", lambda: None)
    code, out, err = planned(capsys, "dummy:1b", *words)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_card_without_a_data_sheet_is_one_line(lib, capsys):
    lib.name = b"NVIDIA GeForce RTX 4090 Laptop GPU"
    code, _, err = planned(capsys, "dummy:1b")
    assert code == 2 and "Laptop" in err and err.count("\n") == 1


@pytest.mark.parametrize("fails", ["nvmlInit_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetName",
                                   "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_does_not_answer_is_no_card(lib, fails):
    lib.fails = fails
    with pytest.raises(ConfigError, match="no graphics card"):
        own_card()


def test_the_first_card_that_may_be_used_is_asked(lib, monkeypatch):
    assert own_card() == OwnCard("NVIDIA GeForce RTX 4090", 20 << 30, 24 << 30) and lib.index == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    own_card()
    assert lib.index == 2


def test_energy_is_counted_in_joules_where_the_driver_counts_it(lib):
    read = energy()
    lib.spent_mj += 1500
    assert read() == 6.5
    lib.fails = "nvmlDeviceGetTotalEnergyConsumption"
    assert energy() is None


def test_a_plan_on_a_card_needs_neither_numpy_nor_torch():
    code = ("import sys; from gramme.cli.main import run; run(['plan', 'dummy:1b', '--json', '--gpu', 'rtx4090']);"
            "assert not {'numpy', 'torch', 'ml_dtypes'} & sys.modules.keys()")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
