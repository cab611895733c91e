"""Remembers how far predictions were off on this machine, so that the next one is better. Knows no engine."""
from collections.abc import Mapping
from typing import Any

from gramme.plan.hardware import Hardware, cache_directory, read_json, write_json
from gramme.plan.roofline import Factor

VERSION = 2  # of the cost model and this file: older records say nothing about newer predictions
KEPT = 200
RECENT = 15
ALIKE = 4.0  # records count for models whose weights are within this factor
PHASES = ("prefill", "decode")
SANE = (0.02, 50.0)  # measured over predicted: what lies outside is a disturbed run


def factors(backend: str, dtype: str, weight_bytes: int, hardware: Hardware) -> dict[str, Factor]:
    """By phase, from the newest records of like models; phases without a record are missing."""
    out = {}
    for phase in PHASES:
        ratios = [r["ratio"] for r in _records(hardware)
                  if (r["backend"], r["dtype"], r["phase"]) == (backend, dtype, phase)
                  and 1 / ALIKE <= r["weight_bytes"] / weight_bytes <= ALIKE][-RECENT:]
        if ratios:
            from statistics import median  # slow to import, and most starts have no record

            out[phase] = Factor(median(ratios), min(ratios), max(ratios), len(ratios))
    return out


def remember(backend: str, dtype: str, weight_bytes: int, hardware: Hardware, ratios: Mapping[str, float]) -> None:
    """`ratios` by phase: measured over predicted, the prediction being the one without calibration."""
    new = [{"backend": backend, "dtype": dtype, "weight_bytes": weight_bytes, "phase": phase, "ratio": ratio}
           for phase, ratio in ratios.items() if phase in PHASES and SANE[0] < ratio < SANE[1]]
    if new:
        write_json(_path(), {"version": VERSION, "machine": _machine(hardware),
                             "records": [*_records(hardware), *new][-KEPT:]})


def _records(hardware: Hardware) -> list[dict[str, Any]]:
    """Those of this machine with its present ceilings: the ratios mean nothing against other ones."""
    found = read_json(_path())
    records = found.get("records")
    if (found.get("version"), found.get("machine")) != (VERSION, _machine(hardware)) or not isinstance(records, list):
        return []
    return [r for r in records if isinstance(r, dict) and _sound(r)]


def _sound(record: dict[str, Any]) -> bool:
    numbers = (record.get("ratio"), record.get("weight_bytes"))
    names = (record.get("backend"), record.get("dtype"), record.get("phase"))
    return all(isinstance(x, int | float) and x > 0 for x in numbers) and all(isinstance(x, str) for x in names)


def _machine(hardware: Hardware) -> str:
    return f"{hardware.name}, {hardware.cores} cores, {hardware.source}"


def _path() -> Any:
    return cache_directory() / "calibration.json"
