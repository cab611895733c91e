"""Which backends can run here. Asks the file system only, so that a plan is made without loading any."""
import os
from importlib.util import find_spec
from pathlib import Path

from gramme.kernels.cpu.library import LIBRARY, WAYS_OUT

DRIVER = Path("/dev/nvidiactl")


def available() -> tuple[str, ...]:
    """The best first."""
    cuda = DRIVER.exists() and find_spec("torch") and find_spec("triton")
    cpu = LIBRARY.exists() and os.environ.get("GRAMME_CPU_LEVEL") != "off"
    return *(["cuda"] if cuda else []), *(["cpu"] if cpu else []), "reference"


def missing() -> str | None:
    """What it means that the CPU's kernels were not compiled, and the ways out; None where they were. pip shows nothing
    of a build, so whoever installed from source without a compiler reads it here first."""
    if LIBRARY.exists():
        return None
    return ("the CPU kernels are not compiled: models run on numpy in float32, slowly, and only where their weights "
            f"take at most half of the memory: {WAYS_OUT}")
