"""`gramme doctor`: what this machine has, and which kernels would run on it."""
import argparse
import json
import platform
from datetime import date
from importlib.util import find_spec

from gramme import __version__
from gramme.bench.ceilings import measure
from gramme.cli.flags import settle
from gramme.cli.options import DoctorOptions
from gramme.config import ConfigError
from gramme.kernels.load import backend
from gramme.kernels.present import available, missing
from gramme.plan.hardware import Hardware, remember, this_machine
from gramme.plan.units import gb


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
        "backends": {name: _try(name) for name in ("cpu", "reference", "eager")},
        "ceilings": {"source": machine.source, **{name: _rate(name, rate) for name, rate in machine.rates.items()}},
    }
    if asked.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        for line in [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [value]:
            print(f"{name.replace('_', ' '):12} {line}")


def _measure(machine: Hardware) -> Hardware:
    """Measured now, and kept for the plans to come."""
    rates = measure(machine.cores)
    remember(rates, date.today().isoformat())
    return this_machine()


def _rate(name: str, rate: float) -> str:
    return f"{rate / 1e9:.1f} " + ("GB/s" if name in ("bandwidth", "disk", "link") else "G operations/s")


def _try(name: str) -> str:
    if name == "eager" and find_spec("torch") is None:
        return "needs PyTorch"
    try:
        return f"works on {backend(name).device.name}"
    except ConfigError as error:
        return str(error)
