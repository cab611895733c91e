"""Which backends can run here. Asks the file system only, so that a plan is made without loading any."""
import os
from importlib.util import find_spec
from pathlib import Path

from gramme.kernels.cpu.library import LIBRARY

DRIVER = Path("/dev/nvidiactl")


def available() -> tuple[str, ...]:
    """The best first."""
    cuda = DRIVER.exists() and find_spec("torch") and find_spec("triton")
    cpu = LIBRARY.exists() and os.environ.get("GRAMME_CPU_LEVEL") != "off"
    return *(["cuda"] if cuda else []), *(["cpu"] if cpu else []), "reference"
