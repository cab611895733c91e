"""The speeds of the kernels that are here: each is measured, and a plan can be made of them."""
import math
from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.skipif("cpu" not in available(), reason="the CPU kernels are not built")
def test_a_record_and_a_probe_replay_the_same_step_of_one_row():
    engine = probes._nothing(1, probes.SHORT)
    probes._decode_s(engine, probes.ROWS)
    probes._replaying(engine)
    assert next(reversed([g for g in engine.runner.graphs._graphs.values() if g])).step.lengths.shape == (1,)


def test_what_memory_feeds_is_measured_until_memory_stays_as_it_is():
    given, passes = iter([50e9] * probes.PASSES + [75e9] * 4 + [74e9, 75e9] * probes.PASSES), []
    memory = Namespace(best=lambda passes: next(given))
    took_s, probed = probes._beside(memory, lambda: passes.append(None))
    assert (len(passes), probed) == (2 * probes.PASSES, 75e9) and took_s >= 0


@given(st.lists(st.floats(1e-6, 1e-3), min_size=6, max_size=6))
def test_overheads_are_those_that_the_planner_adds_up(costs):
    names = (speeds.STEP, speeds.ROW, speeds.LAYER, speeds.LAYER_ROW, speeds.CALLED_STEP, speeds.CALLED_LAYER)
    rates = {name: 1 / cost for name, cost in zip(names, costs)}
    decode_s = lambda rows, layers: speeds.host_s(rows, layers, False, rates)
    times = {speeds.REPLAYS: 1e-5} | {
        f"{kind} {layers}": took_s for layers in (probes.SHORT, probes.LONG) for kind, took_s in {
            "one": decode_s(1, layers), "many": decode_s(probes.ROWS, layers),
            "prompt": speeds.host_s(1, layers, True, rates | {speeds.LAYER_ROW: math.inf})}.items()}
    assert probes._overheads(times) == pytest.approx(rates | {speeds.REPLAYS: 1e5}, rel=1e-6)
