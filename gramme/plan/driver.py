"""The graphics card that this process would use, as NVIDIA's driver knows it (docs.nvidia.com/deploy/nvml-api).

Needs no PyTorch: a plan is made before anything heavy is imported. Knows no figures of cards.
"""
import ctypes
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from gramme.config import ConfigError

NAME_BYTES = 96
load = ctypes.CDLL


class OwnCard(NamedTuple):
    name: str
    free_bytes: int
    total_bytes: int


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def own_card() -> OwnCard:
    """Raises ConfigError where there is none, or its driver does not answer."""
    lib, handle = first_card() or (None, None)
    name, memory = ctypes.create_string_buffer(NAME_BYTES), _Memory()
    if lib is None or lib.nvmlDeviceGetName(handle, name, NAME_BYTES) or \
            lib.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        raise ConfigError("NVIDIA's driver tells of no graphics card here: --gpu NAME plans for one anywhere, "
                          "--cpu for the processor")
    return OwnCard(name.value.decode("utf-8", "replace"), int(memory.free), int(memory.total))


def energy() -> Callable[[], float] | None:
    """The card's counter of joules; None where there is no card, or the driver has no such counter."""
    lib, handle = first_card() or (None, None)
    millijoules = ctypes.c_ulonglong()
    if lib is None or lib.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None

    def read() -> float:
        lib.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return read


def first_card() -> tuple[Any, ctypes.c_void_p] | None:
    """NVML and its handle of the first card that this process may use."""
    try:
        lib = load("libnvidia-ml.so.1")
    except OSError:
        return None
    visible, handle = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0], ctypes.c_void_p()
    index = int(visible) if visible.isdigit() else 0
    failed = lib.nvmlInit_v2() or lib.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return None if failed else (lib, handle)
