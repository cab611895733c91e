"""`gramme doctor`: what this machine has, and which kernels would run on it."""
import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.util import find_spec
from itertools import product

from gramme import __version__
from gramme.bench.ceilings import measure
from gramme.bench.speeds import measure as measure_speeds
from gramme.cli.flags import settle
from gramme.cli.options import DoctorOptions
from gramme.config import ConfigError
from gramme.kernels.load import backend
from gramme.kernels.present import available, missing
from gramme.plan import speeds
from gramme.plan.hardware import Hardware, remember, this_machine
from gramme.plan.others import Others
from gramme.plan.units import gb

CEILINGS = ("bandwidth", "float32", "int8", "disk", "link", "fp32_accumulate", "fp16_accumulate")


def main(args: argparse.Namespace) -> None:
    asked, machine = settle(args, DoctorOptions), this_machine()
    if asked.measure:
        machine = _measure(machine)
    facts = {
        "gramme": __version__, "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": machine.cores, "free_memory": gb(machine.free_bytes),
        "torch": "installed" if find_spec("torch") else "not installed (not needed on a CPU)",
        "cpu_level": backend("cpu").level if "cpu" in available() else f"none; {missing()}" if missing() else "none",
        "backends": {name: _try(name, machine.cores) for name in ("cuda", "cpu", "reference", "eager")},
        "ceilings": {"source": machine.source, **{name: _rate(name, rate) for name, rate in machine.rates.items()
                                                  if name.rpartition(": ")[2] in CEILINGS}},
        "speeds": dict(_speeds(machine.rates)),
    }
    if asked.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        for line in [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [value]:
            print(f"{name.replace('_', ' '):12} {line}")


def _measure(machine: Hardware) -> Hardware:
    """Measured now, and kept for the plans to come."""
    others = Others()
    rates = measure(machine.cores)
    remember(rates | measure_speeds(machine.cores, rates["bandwidth"]), f"{datetime.now():%Y-%m-%d %H:%M}")
    if others.disturb(machine.cores):
        print(f"gramme: others took {others.cores():.1f} cores meanwhile: measure again when this machine is quiet",
              file=sys.stderr)
    return this_machine()


def _speeds(rates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Of our CPU kernels, where they were measured."""
    if speeds.STEP not in rates:
        return
    for form, place in product(speeds.BYTES, speeds.PLACES):
        names = [speeds.product_name(form, n, place) for n in speeds.TOKENS]
        for some in (names, [speeds.by_itself(name) for name in names if name in speeds.FED]):
            if some:
                yield some[0].replace("x1 ", ""), f"{', '.join(f'{rates[n] / 1e9:.0f}' for n in some)} G operations/s"
    yield "of tokens", ", ".join(map(str, speeds.TOKENS))
    yield speeds.ATTENTION, f"{rates[speeds.ATTENTION] / 1e9:.0f} G operations/s"
    for columns, name in product(speeds.KEY_COLUMNS, (str, speeds.by_itself)):
        of = name(speeds.keys_name(columns))
        yield of, f"{rates[of] / 1e9:.1f} G elements/s"
    for name in (speeds.STEP, speeds.CALLED_STEP, speeds.ROW, speeds.LAYER, speeds.CALLED_LAYER, speeds.LAYER_ROW):
        yield name, f"{1e6 / rates[name]:.1f} us beside its work"


def _rate(name: str, rate: float) -> str:
    return f"{rate / 1e9:.1f} " + ("GB/s" if name.endswith(("bandwidth", "disk", "link")) else "G operations/s")


def _try(name: str, threads: int) -> str:
    if name == "eager" and find_spec("torch") is None:
        return "needs PyTorch"
    try:
        return f"works on {backend(name, threads).device.name}"
    except ConfigError as error:
        return str(error)
