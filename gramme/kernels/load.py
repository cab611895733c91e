"""Which kernels run: names a backend, imports it when asked, and says why one cannot be had."""
from dataclasses import dataclass

from gramme.config import ConfigError
from gramme.kernels.ops import Device, Ops
from gramme.kernels.reference import REFERENCE, NumpyDevice


@dataclass(frozen=True)
class Backend:
    name: str
    ops: Ops
    device: Device
    asynchronous: bool = False  # whether a step returns before its results are there


def backend(name: str) -> Backend:
    """Raises ConfigError, with the reason, when the backend cannot be loaded."""
    if name == "reference":
        return Backend(name, REFERENCE, NumpyDevice())
    if name == "eager":
        try:
            from gramme.kernels.eager import EAGER, TorchDevice
        except ImportError as error:
            raise ConfigError(f"backend 'eager' needs PyTorch, which cannot be imported: {error}") from None
        return Backend(name, EAGER, TorchDevice("cpu"))
    raise ConfigError(f"backend {name!r} is not built here; there are: reference, eager")
