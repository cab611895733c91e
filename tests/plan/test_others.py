"""Cores that others take, from counters of a made-up machine."""
import os

import pytest

from gramme.plan import others
from gramme.plan.others import Others

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns what lets seconds pass: of the clock, of this process, of other processes, of other guests."""
    now = {"wall": 100.0, "own": 5.0, "others": 50.0, "steal": 3.0}

    def write():
        # the last two are guests: they stand in the first ones already
        busy = [now["own"] + now["others"], 1, 2, 9999, 77, 3, 4, now["steal"], 500, 500]
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/stat").write_text(f"cpu  {' '.join(str(round(TICKS * x)) for x in busy)}\ncpu0 1 2 3\n")

    def passing(wall, own, others=0.0, steal=0.0):
        now.update(wall=now["wall"] + wall, own=now["own"] + own, others=now["others"] + others,
                   steal=now["steal"] + steal)
        write()

    monkeypatch.setattr(others.time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(others.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(others.os, "cpu_count", lambda: 4)
    write()
    return tmp_path, passing


def test_our_own_work_disturbs_nobody(machine):
    root, passing = machine
    watched = Others(root)
    passing(10, own=40)
    assert watched.cores() == pytest.approx(0, abs=0.01) and not watched.disturb(4)


@pytest.mark.parametrize("took", [{"others": 5.0}, {"steal": 5.0}])
def test_others_disturb_who_wants_all_cores_and_not_who_leaves_some(machine, took):
    root, passing = machine
    watched = Others(root)
    passing(10, own=20, **took)
    assert watched.cores() == pytest.approx(0.5, abs=0.01)
    assert watched.disturb(4) and not watched.disturb(3)


def test_short_times_and_systems_without_counters_say_nothing(machine, tmp_path):
    root, passing = machine
    watched, blind = Others(root), Others(tmp_path / "nowhere")
    passing(0.1, own=0.1, others=0.4)
    assert watched.cores() == 0.0
    passing(10, own=1, others=40)
    assert watched.cores() > 3 and blind.cores() == 0.0 and not blind.disturb(4)
