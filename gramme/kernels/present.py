"""Which backends can run here, and on what: by files and the driver alone, so that a plan loads none of them."""
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gramme.kernels.cpu.library import LIBRARY, WAYS_OUT
from gramme.plan.driver import own_card
from gramme.plan.hardware import Hardware, own, this_machine

DRIVER = Path("/dev/nvidiactl")


def available() -> tuple[str, ...]:
    """The best first."""
    cuda = DRIVER.exists() and find_spec("torch") and find_spec("triton")
    cpu = LIBRARY.exists() and os.environ.get("GRAMME_CPU_LEVEL") != "off"
    return *(["cuda"] if cuda else []), *(["cpu"] if cpu else []), "reference"


def foreseen(backend: str) -> Hardware:
    """This machine as that backend would see it, "auto" being the best one: as `load.machine`, without PyTorch.

    Raises ConfigError for a graphics card that is not here.
    """
    host, backends = this_machine(), available()
    if (backends[0] if backend == "auto" else backend) != "cuda":
        return replace(host, backends=backends)
    return own(host, *own_card())


def missing() -> str | None:
    """What it means that the CPU's kernels were not compiled, and the ways out; None where they were. pip shows nothing
    of a build, so whoever installed from source without a compiler reads it here first."""
    if LIBRARY.exists():
        return None
    return ("the CPU kernels are not compiled: models run on numpy in float32, slowly, and only where their weights "
            f"take at most half of the memory: {WAYS_OUT}")
