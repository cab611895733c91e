"""What a machine is, as one record: cores, memory, and the rates that it reaches at most. Measuring is done elsewhere.

Rates are bytes/s for "bandwidth" (memory), "disk" and "link" (host to GPU), operations/s for the other ceilings; a
multiply-add is two operations. Those of our own CPU kernels are described in speeds.py. They are measured ones where
`remember` has stored them, a data sheet's for cards that are not here, and else assumed, which every prediction says.
"""
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gramme.config import ConfigError
from gramme.plan.gpus import GPU, Ceiling, gpu
from gramme.plan.limits import last_level_cache_bytes, memory_bytes, threads

ABANDONED_S = 60.0  # since a file was begun: writing one takes a thousandth of a second
VERSION = 6  # of the file of measured rates
# Assumed where nothing was measured, for one core: what two-channel desktops with AVX2 have at least.
CORE_BANDWIDTH, MOST_BANDWIDTH = 10e9, 40e9
CORE_FLOAT32, CORE_INT8 = 40e9, 120e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    cores: int  # that are worth a thread of this process, see `limits.threads`
    free_bytes: int  # memory that could be taken now
    backends: tuple[str, ...] = ("reference",)  # that run here, the best first
    kind: Literal["cpu", "gpu"] = "cpu"
    name: str = "this machine"
    total_bytes: int = 0
    cache_bytes: int = 0  # of a CPU's last level
    processors: int = 0  # multiprocessors of a GPU
    rates: Mapping[str, float] = field(default_factory=dict)
    source: str = "assumed"  # of the rates: "measured DATE", "data sheet", "assumed"

    def rate(self, ceiling: str) -> float:
        """Raises ConfigError for a ceiling that is not known here."""
        if ceiling in self.rates:
            return self.rates[ceiling]
        if self.kind == "gpu" or ceiling not in (guesses := assumed(self.cores)):
            raise ConfigError(f"{self.name}: the rate of {ceiling} is not known")
        return guesses[ceiling]


def this_machine() -> Hardware:
    cores, name = threads(), cpu_name()
    rates, source = _measured(name, cores)
    return Hardware(cores=cores, free_bytes=_free_bytes(), name=name, total_bytes=_meminfo("MemTotal:") or 0,
                    cache_bytes=last_level_cache_bytes(), rates=rates, source=source)


def card(gpu: GPU) -> Hardware:
    """A graphics card that may be anywhere, with all of its memory free."""
    rates = {str(c): gpu.rate(c) for c in get_args(Ceiling)}
    return Hardware(cores=threads(), free_bytes=gpu.vram_bytes, kind="gpu", name=gpu.name, total_bytes=gpu.vram_bytes,
                    backends=("cuda",), rates=rates, source="data sheet", processors=gpu.multiprocessors)


def own(host: Hardware, name: str, free_bytes: int, total_bytes: int, processors: int = 0) -> Hardware:
    """This machine's graphics card, with the memory that it has now; `processors` where its data sheet is not known.
    What was measured of it comes before its data sheet."""
    measured = {c: host.rates[card_rate(name, c)] for c in get_args(Ceiling) if card_rate(name, c) in host.rates}
    found = replace(host, kind="gpu", name=name, backends=("cuda",), rates={}, processors=processors, source="assumed")
    with suppress(ConfigError):
        found = replace(card(gpu(name)), cores=host.cores)
    return replace(found, free_bytes=free_bytes, total_bytes=total_bytes, rates={**found.rates, **measured},
                   source=host.source if measured else found.source)


def card_rate(name: str, ceiling: str) -> str:
    """Under which name a rate of a card is kept beside those of the machine: it may be changed for another."""
    return f"{name}: {ceiling}"


def assumed(cores: int) -> dict[str, float]:
    return {"bandwidth": min(CORE_BANDWIDTH * cores, MOST_BANDWIDTH), "float32": CORE_FLOAT32 * cores,
            "int8": CORE_INT8 * cores}


def remember(rates: Mapping[str, float], date: str) -> Path:
    """Keep what was measured on this machine, for the plans to come."""
    path = cache_directory() / "machine.json"
    write_json(path, {"version": VERSION, "name": cpu_name(), "cores": threads(), "date": date, "rates": dict(rates)})
    return path


def cpu_name() -> str:
    lines = (line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines())
    names = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/gramme, ~/.cache/gramme by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gramme"


def read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing when it is missing or broken: it is a cache."""
    try:
        value = json.loads(_read(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """All or nothing: readers never see half a file. A cache that cannot be written is not worth an error."""
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{path.stem}.*[0-9]"):  # by those who were killed here
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink(missing_ok=True)
        new.write_text(json.dumps(value))
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)


def _measured(name: str, cores: int) -> tuple[dict[str, float], str]:
    found = read_json(cache_directory() / "machine.json")
    if (found.get("version"), found.get("name"), found.get("cores")) != (VERSION, name, cores):
        return {}, "assumed"
    rates = found.get("rates")
    if not isinstance(rates, dict) or not all(isinstance(r, int | float) and r > 0 for r in rates.values()):
        return {}, "assumed"
    return rates, f"measured {found.get('date')}"


def _free_bytes() -> int:
    left, most = _meminfo("MemAvailable:") or 1 << 32, memory_bytes()
    return left if most is None else min(left, most)


def _meminfo(key: str) -> int | None:
    lines = (line.split() for line in _read(Path("/proc/meminfo")).splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == key), None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
