"""What the system leaves to this process: cores that are worth a thread, memory, cache. Reads /proc and /sys.

Where these do not exist, on other systems than Linux, nothing limits but the number of processors.
"""
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
FAST = 0.75  # of the fastest core's capacity: what has less is an efficiency core, for which all others would wait


def threads(root: Path = ROOT) -> int:
    """Performance cores that this process may run on, each counted once however many threads it runs at once, and no
    more than the whole processors of the control groups' quotas."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(1, min([len(_cores(allowed, root)), *_quotas(root)]))


def memory_bytes(root: Path = ROOT) -> int | None:
    """What the tightest control group leaves; None: none of them has a limit."""
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    pairs = [(_read(f / most), _read(f / used)) for f in _groups("memory", root) for most, used in names]
    return min((max(0, int(most) - int(used)) for most, used in pairs if most.isdigit() and used.isdigit()),
               default=None)


def last_level_cache_bytes(root: Path = ROOT) -> int:
    """Size of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [_read(path) for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 10, "M": 20}
    return max((int(size.rstrip("KM")) << units.get(size[-1], 0) for size in sizes if size), default=32 << 20)


def resident_bytes(process: int | str = "self") -> int:
    """Anonymous and mapped memory of a process; 0 where the system does not say."""
    lines = (line.split() for line in _read(ROOT / f"proc/{process}/status").splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
    return sizes.get("RssAnon:", 0) + sizes.get("RssFile:", 0)


def _cores(allowed: set[int], root: Path) -> set[str]:
    """The fast ones among these processors; those of one core share a name."""
    folder = root / "sys/devices/system/cpu"
    fast = _numbers(_read(root / "sys/devices/cpu_core/cpus")) & allowed or allowed  # Intel's, of two kinds
    capacity = {i: int(_read(folder / f"cpu{i}/cpu_capacity") or 1) for i in fast}
    fast = {i for i in fast if capacity[i] >= FAST * max(capacity.values())}
    return {_read(folder / f"cpu{i}/topology/thread_siblings_list") or str(i) for i in fast}


def _quotas(root: Path) -> Iterator[int]:
    for folder in _groups("cpu", root):
        quota = _read(folder / "cpu.max").split() or [_read(folder / f"cpu.cfs_{x}_us") for x in ("quota", "period")]
        if len(quota) == 2 and all(x.isdigit() for x in quota):
            yield int(quota[0]) // int(quota[1])


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups with that controller, version 1 or 2, and of all around them."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            here = top / path.lstrip("/")
            yield from (here, *(p for p in here.parents if p.is_relative_to(top)))


def _numbers(text: str) -> set[int]:
    """Of a list such as 0-3,8."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return {i for low, _, high in ends for i in range(int(low), int(high or low) + 1)}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
