"""What the machine is, as one record. Measuring speeds is not done here."""
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    cores: int  # that this process may use
    free_bytes: int  # memory that could be taken now
    backends: tuple[str, ...] = ("reference",)  # that run here, the best first


def this_machine() -> Hardware:
    return Hardware(cores=_cores(), free_bytes=_free_bytes())


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _free_bytes() -> int:
    lines = (line.split() for line in _read(Path("/proc/meminfo")).splitlines())
    free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), 1 << 32)
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")).strip(), _read(Path("/sys/fs/cgroup/memory.current")).strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
