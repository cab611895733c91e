"""Cores and memory that a process may use, on machines made of files."""
import os

import pytest

from gramme.plan import limits


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder of the files given; the process may run on `allowed`."""
    def make(allowed, files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path
    return make


def siblings(*pairs):
    return {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": ",".join(map(str, pair))
            for pair in pairs for i in pair}


def test_the_affinity_mask_counts_where_nothing_else_is_known(machine):
    assert limits.threads(machine([0, 3, 5], {})) == 3


def test_two_threads_of_one_core_count_once(machine):
    root = machine(range(4), siblings((0, 2), (1, 3)))
    assert limits.threads(root) == 2
    machine({0, 2, 3}, {})
    assert limits.threads(root) == 2


def test_efficiency_cores_are_left_out_unless_there_is_nothing_else(machine):
    intel = siblings((0, 1), (2, 3), (4,), (5,), (6,)) | {"sys/devices/cpu_core/cpus": "0-3"}
    root = machine(range(7), intel)
    assert limits.threads(root) == 2
    machine({4, 5, 6}, {})
    assert limits.threads(root) == 3


def test_cores_of_little_capacity_are_left_out(machine):
    arm = {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": c for i, c in enumerate([1024, 900, 900, 400, 400])}
    root = machine(range(5), arm)
    assert limits.threads(root) == 3
    machine({3, 4}, {})
    assert limits.threads(root) == 2


@pytest.mark.parametrize("files, threads", [
    ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    ({"sys/fs/cgroup/cpu.max": "350000 100000"}, 3),
    ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    ({"sys/fs/cgroup/a/b/cpu.max": "200000 100000"}, 2),
    ({"sys/fs/cgroup/a/cpu.max": "200000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
    ({"sys/fs/cgroup/other/cpu.max": "200000 100000"}, 8),
    ({"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"}, 4),
    ({"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"}, 8),
])
def test_quotas_of_the_groups_around_the_process_count(machine, files, threads):
    assert limits.threads(machine(range(8), {"proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/a/b"} | files)) == threads


def test_the_tightest_group_says_how_much_memory_is_left(machine):
    groups = {"proc/self/cgroup": "7:memory:/x\n0::/a/b", "sys/fs/cgroup/a/b/memory.max": "max",
              "sys/fs/cgroup/a/b/memory.current": "10"}
    assert limits.memory_bytes(machine([0], groups)) is None
    outer = {"sys/fs/cgroup/a/memory.max": "1000", "sys/fs/cgroup/a/memory.current": "400"}
    assert limits.memory_bytes(machine([0], outer)) == 600
    first = {f"sys/fs/cgroup/memory/x/memory.{name}_in_bytes": n for name, n in (("limit", 500), ("usage", 90))}
    assert limits.memory_bytes(machine([0], first)) == 410
