"""Which kernels run: names a backend, imports it when asked, and says why one cannot be had."""
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped
from gramme.kernels.ops import Array, Device, Ops
from gramme.kernels.reference import REFERENCE, NumpyDevice
from gramme.plan.hardware import Hardware, own


@dataclass(frozen=True)
class Backend:
    name: str
    ops: Ops
    device: Device
    pack: Callable[[Array | Grouped], Array]  # a matrix, float or integer, laid out on the device for the operations
    packed: type | None = None  # what `pack` gives, where it is a record of arrays in memory that a file can hold
    integer_acts: tuple[int, ...] = ()  # bits of the integer weights that multiply integer activations
    group: int = 1  # columns: groups of integer weights must be a multiple of so many
    permutes: tuple[int, ...] = ()  # bits of the integer weights that may want activations in another order of columns
    asynchronous: bool = False  # whether a step returns before its results are there
    pads: bool = False  # whether captured steps are padded, since capturing takes long
    records: bool = False  # whether a captured step is replayed by one call; if not, it is run again
    level: str = ""  # the instruction set, where there is a choice, and who chose it


def machine(name: str, host: Hardware) -> Hardware:
    """The machine as that backend sees it: a GPU with its own memory in place of the host's. Raises ConfigError."""
    if name != "cuda":
        return host
    module, device = _cuda()
    free, total = device.memory()
    return own(host, module.device_name(), free, total, module.processors(device.name))


def backend(name: str, threads: int = 1, deterministic: bool = False, half: bool = False,
            torch_device: str = "cpu") -> Backend:
    """`deterministic` and `half` are the GPU's, see `cuda.backend.Settings`; the CPU's kernels are deterministic.
    `torch_device` is where eager's tensors are.

    Raises ConfigError, with the reason, when the backend cannot be loaded.
    """
    if name == "cpu":
        from gramme.kernels.cpu.kernels import CpuDevice, CpuKernels
        from gramme.kernels.cpu.known import best_level, said
        from gramme.kernels.cpu.layout import Packed, pack

        kernels = CpuKernels(best_level(), threads)
        return Backend(name, kernels.ops(), CpuDevice(kernels), pack=pack, packed=Packed, integer_acts=(4, 8),
                       group=32, permutes=(4, 8), records=True, level=said())
    if name == "reference":
        return Backend(name, REFERENCE, NumpyDevice(), pack=lambda w: w, integer_acts=(4, 8), permutes=(4, 8))
    if name == "eager":
        try:
            from gramme.kernels.eager import EAGER, TorchDevice
        except ImportError as error:
            raise ConfigError(f"backend 'eager' needs PyTorch, which cannot be imported: {error}") from None
        device = TorchDevice(torch_device)
        return Backend(name, EAGER, device, pack=device.pack, permutes=(4, 8))
    if name == "cuda":
        module, device = _cuda()
        kernels = module.Kernels(device.name, module.Settings(deterministic, half))
        return Backend(name, kernels.ops(), device, kernels.pack, integer_acts=(8,), group=32, permutes=(4,),
                       asynchronous=True, pads=True, records=True)
    raise ConfigError(f"backend {name!r} is not built here; there are: cpu, reference, eager, cuda")


def _cuda() -> tuple[ModuleType, Device]:
    try:
        from gramme.kernels.cuda import backend as module
    except ImportError as error:
        raise ConfigError(f"backend 'cuda' needs PyTorch and Triton, which cannot be imported: {error}") from None
    return module, module.CudaDevice(module.where())
