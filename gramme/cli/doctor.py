"""`gramme doctor`: what this machine has, and which kernels would run on it."""
import argparse
import json
import platform
from importlib.util import find_spec

from gramme import __version__
from gramme.cli.flags import settle
from gramme.cli.options import OutputOptions
from gramme.config import ConfigError
from gramme.kernels.load import backend
from gramme.plan.hardware import this_machine
from gramme.plan.units import gb


def main(args: argparse.Namespace) -> None:
    machine = this_machine()
    facts = {
        "gramme": __version__, "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": machine.cores, "free_memory": gb(machine.free_bytes),
        "torch": "installed" if find_spec("torch") else "not installed (not needed on a CPU)",
        "backends": {name: _try(name) for name in ("reference", "eager")},
    }
    if settle(args, OutputOptions).json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        for line in [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [value]:
            print(f"{name.replace('_', ' '):12} {line}")


def _try(name: str) -> str:
    if name == "eager" and find_spec("torch") is None:
        return "needs PyTorch"
    try:
        return f"works on {backend(name).device.name}"
    except ConfigError as error:
        return str(error)
