"""Energy counters: which zones count, where they begin again, and whose word goes before whose."""
import pytest

from gramme.config import ConfigError, EngineConfig
from gramme.llm.energy import PowerMeter, power, rapl
from gramme.models.dummy import SHAPES
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.plan.receipts import Power

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1",
         "intel-rapl:2": "psys"}


def write(folder, **microjoules):
    for zone, name in ZONES.items():
        (folder / zone).mkdir(exist_ok=True)
        (folder / zone / "name").write_text(name + "\n")
        (folder / zone / "max_energy_range_uj").write_text("1000000000\n")
        (folder / zone / "energy_uj").write_text(f"{microjoules.get(name.replace('-', ''), 0)}\n")
    return folder


def decided(**options):
    return plan(SHAPES["tiny"], EngineConfig(**options), Hardware(cores=1, free_bytes=1 << 32))


def test_packages_and_memory_count_and_a_counter_that_begins_again_goes_on(tmp_path):
    read = rapl(write(tmp_path, package0=900_000_000, package1=1_000_000, dram=2_000_000, core=5, psys=7))
    assert read() == pytest.approx(903.0)
    write(tmp_path, package0=100_000_000, package1=2_000_000, dram=2_000_000)
    assert read() == pytest.approx(903.0 + 200 + 1)


def test_counters_that_are_not_there_or_broken_are_none(tmp_path):
    assert rapl(tmp_path) is None
    (write(tmp_path) / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert rapl(tmp_path) is None


def test_a_declared_power_goes_before_a_counter_and_a_counter_before_nothing(tmp_path):
    assert power(decided(), tmp_path).power == Power()
    assert power(decided(), write(tmp_path)).power.source == "RAPL"
    assert power(decided(power="30W"), tmp_path).power == Power(watts=30.0, source="declared")


def test_a_price_for_energy_needs_a_power(tmp_path):
    with pytest.raises(ConfigError, match="--power"):
        power(decided(price="0.2/kWh"), tmp_path)
    assert power(decided(price="0.2/h"), tmp_path).power == Power()
    assert power(decided(price="0.2/kWh"), write(tmp_path)).power.source == "RAPL"


def test_the_power_is_the_mean_over_work_and_idleness_does_not_count():
    joules = [0.0]
    meter = PowerMeter(Power(source="RAPL"), lambda: joules[0])
    meter.restart(100.0)
    joules[0] = 8.0
    meter.read(100.2, last=False)
    assert meter.power.watts is None, "a window that short says little"
    joules[0] = 30.0
    meter.read(101.0, last=False)
    assert meter.power == Power(watts=30.0, source="RAPL")
    joules[0] = 1000.0  # drawn while nobody asked for anything
    meter.restart(200.0)
    joules[0] = 1005.0
    meter.read(200.1, last=True)
    assert meter.power.watts == pytest.approx(50.0)
