"""Which kernels run: names a backend, imports it when asked, and says why one cannot be had."""
from collections.abc import Callable
from dataclasses import dataclass

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped
from gramme.kernels.ops import Array, Device, Ops
from gramme.kernels.reference import REFERENCE, NumpyDevice


@dataclass(frozen=True)
class Backend:
    name: str
    ops: Ops
    device: Device
    pack: Callable[[Array | Grouped], Array]  # a matrix, float or integer, laid out on the device for the operations
    integer_acts: bool = False  # whether integer weights multiply integer activations
    asynchronous: bool = False  # whether a step returns before its results are there


def backend(name: str) -> Backend:
    """Raises ConfigError, with the reason, when the backend cannot be loaded."""
    if name == "reference":
        return Backend(name, REFERENCE, NumpyDevice(), pack=lambda w: w, integer_acts=True)
    if name == "eager":
        try:
            from gramme.kernels.eager import EAGER, TorchDevice
        except ImportError as error:
            raise ConfigError(f"backend 'eager' needs PyTorch, which cannot be imported: {error}") from None
        device = TorchDevice("cpu")
        return Backend(name, EAGER, device, pack=device.pack)
    raise ConfigError(f"backend {name!r} is not built here; there are: reference, eager")
