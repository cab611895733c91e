"""Measures what this machine allows: reading memory, multiplying, reading files, copying to a GPU. Knows no model.

A ceiling is the best of several passes; `gramme doctor --measure` keeps them for the planner.
"""
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gramme.config import ConfigError
from gramme.kernels.load import Backend, backend
from gramme.kernels.ops import Device
from gramme.kernels.present import available
from gramme.kernels.reference import storage_dtype
from gramme.plan.driver import own_card
from gramme.plan.hardware import card_rate
from gramme.quant.rounding import round_to_nearest

MEMORY_BYTES = 1 << 29  # far beyond the caches of a desktop: of half as much, 32 MB of cache held an eighth
FILE_BYTES = LINK_BYTES = 1 << 28
TOKENS, ROWS, COLUMNS = 256, 2048, 2048  # a product that stays in cache: 2 MB of 4-bit codes


def measure(threads: int, seconds: float = 0.3, disk: bool = True) -> dict[str, float]:
    """bytes/s and operations/s by the planner's names; each probe runs for about `seconds`.

    Of a graphics card, by its name: its memory, its products, and the way to it.
    """
    kernels, card = _kernels(threads), _load("cuda", threads)
    rates = {"bandwidth": reading(kernels).rate(seconds), "float32": multiplying_float32(kernels).rate(seconds)}
    if kernels is not None:
        rates["int8"] = multiplying_int8(kernels).rate(seconds)
    if card is not None:
        rates["link"] = copy_to(card.device, seconds)
        rates |= _of_card(seconds)
    return rates | ({"disk": read_file(Path(tempfile.gettempdir()))} if disk else {})


def _of_card(seconds: float) -> dict[str, float]:
    """What it does not allow, its memory being taken for instance, is left to its data sheet."""
    from gramme.kernels.cuda import ceilings as gpu_ceilings  # PyTorch is imported where there is a card only

    with suppress(ConfigError, RuntimeError):
        name = own_card().name
        return {card_rate(name, ceiling): rate for ceiling, rate in gpu_ceilings.measure("cuda", seconds).items()}
    return {}


@dataclass(frozen=True)
class Work:
    """Something to run again and again, and the bytes or operations that it does each time."""

    amount: float
    run: Callable[[], object]

    def rate(self, seconds: float) -> float:
        """A second, of the fastest pass among as many as fit."""
        return self.amount / _best(self.run, seconds)

    def best(self, passes: int) -> float:
        """The same of so many."""
        return self.amount / min(seconds_of(self.run) for _ in range(passes))


def read_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """bytes/s at which all threads read memory."""
    return reading(_kernels(threads)).rate(seconds)


def reading(kernels: Backend | None) -> Work:
    """Of memory by all threads: our kernels', numpy's BLAS where they are not built."""
    matrix, x = np.ones((MEMORY_BYTES // 16384, 4096), np.float32), np.ones(4096, np.float32)
    return Work(matrix.nbytes, (lambda: matrix @ x) if kernels is None else lambda: kernels.device.kernels.read(matrix))


def multiplying_float32(kernels: Backend | None) -> Work:
    """A product that stays in cache: our kernels', numpy's BLAS where they are not built."""
    a, b = np.ones((TOKENS, COLUMNS), np.float32), np.ones((ROWS // 2, COLUMNS), np.float32)
    ops = 2 * TOKENS * COLUMNS * (ROWS // 2)
    if kernels is None:
        return Work(ops, lambda: a @ b.T)
    w = kernels.pack(b.astype(storage_dtype("bfloat16")))
    return Work(ops, lambda: kernels.ops.matmul(a, w, None))


def multiplying_int8(kernels: Backend) -> Work:
    """Of our kernels, 4-bit weights by 8-bit activations, a product that stays in cache."""
    rng = np.random.default_rng(0)
    w = kernels.pack(round_to_nearest(rng.standard_normal((ROWS, COLUMNS), dtype=np.float32), 4, 128))
    x = kernels.ops.quantise(rng.standard_normal((TOKENS, COLUMNS), dtype=np.float32), "int8/128")
    return Work(2 * TOKENS * ROWS * COLUMNS, lambda: kernels.ops.matmul(x, w, None))


def copy_to(device: Device, seconds: float = 0.5) -> float:
    """bytes/s from host memory to a device's, over PCIe where it is a card."""
    host = np.ones(LINK_BYTES // 4, np.float32)
    there = device.put(host)

    def copy() -> None:
        device.put(host, there)
        device.get(there[:1])  # waits

    return host.nbytes / _best(copy, seconds)


def read_file(directory: Path, nbytes: int = FILE_BYTES) -> float:
    """bytes/s of a file that the system was asked to forget; what a host caches below us cannot be excluded."""
    with tempfile.NamedTemporaryFile(dir=directory) as f:
        for _ in range(nbytes >> 22):
            f.write(os.urandom(1 << 12) * (1 << 10))
        f.flush()
        os.fsync(f.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with open(f.name, "rb", buffering=0) as again:
            buffer = bytearray(1 << 22)
            while again.readinto(buffer):
                pass
        return nbytes / (time.perf_counter() - began)


def _kernels(threads: int) -> Backend | None:
    return _load("cpu", threads)


def _load(name: str, threads: int) -> Backend | None:
    """None where it cannot be had."""
    if name not in available():
        return None
    try:
        return backend(name, threads)
    except ConfigError:
        return None


def _best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest pass among as many as fit."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, seconds_of(run))
    return best


def seconds_of(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
