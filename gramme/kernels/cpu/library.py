"""Loads the compiled kernels, chooses the instruction set, calls them. Knows pointers and sizes, no tensor's meaning.

A level is taken after it has given known answers; GRAMME_CPU_LEVEL=NAME forces one, GRAMME_CPU_LEVEL=off none.
GRAMME_CPU_LIBRARY=FILE is built and loaded in place of the library beside this file, one with sanitizers for example.
"""
import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from gramme.config import ConfigError

LIBRARY = Path(os.environ.get("GRAMME_CPU_LIBRARY") or Path(__file__).parent / "libgramme_cpu.so").absolute()
WAYS_OUT = "install a C++ compiler and run `python -m gramme.kernels.cpu.build`, or install gramme from a wheel"
UNTESTED = ("neon",)  # levels whose tests have not all passed anywhere: taken only where they are asked for by name
POINTERS, SIZES, FLOATS = 12, 12, 4


class Op(IntEnum):
    """The order of `enum Op` in gramme_cpu.h."""

    TAKE = 0
    ADD_NORM = 1
    HEAD_NORM = 2
    QUANTISE = 3
    MATMUL = 4
    GATE_UP = 5
    ROPE = 6
    WRITE_KV = 7
    ATTEND = 8
    MERGE = 9
    SAMPLE = 10
    READ = 11


class Args(ctypes.Structure):
    _fields_ = [("p", ctypes.c_void_p * POINTERS), ("n", ctypes.c_int64 * SIZES), ("f", ctypes.c_float * FLOATS)]


class Call(ctypes.Structure):
    _fields_ = [("op", ctypes.c_int64), ("args", ctypes.POINTER(Args))]


@cache
def library() -> ctypes.CDLL:
    """Raises ConfigError, saying what to do, when it cannot be loaded."""
    try:
        lib = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ConfigError(f"the CPU kernels cannot be loaded ({error!s:.120}): {WAYS_OUT}") from None
    lib.gramme_level.restype = lib.gramme_pool_new.restype = ctypes.c_void_p
    lib.gramme_level.argtypes = [ctypes.c_int]
    lib.gramme_level_name.restype, lib.gramme_level_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    lib.gramme_pool_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.gramme_pool_free.argtypes = [ctypes.c_void_p]
    lib.gramme_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(Call), ctypes.c_int64]
    return lib


def levels() -> dict[str, int]:
    """Name -> address of every level that this processor runs, the best first."""
    lib, out, i = library(), {}, 0
    while address := lib.gramme_level(i):
        out[lib.gramme_level_name(address).decode()] = address
        i += 1
    return out


@dataclass
class Program:
    """Calls that were recorded, replayed by one call into C. It owns the memory that they write."""

    pool: "Pool"
    kept: list[Any] = field(default_factory=list)  # what the pointers point to
    ops: list[int] = field(default_factory=list)
    args: list[Args] = field(default_factory=list)
    guards: dict[Any, Callable[[], object]] = field(default_factory=dict)  # checks of the indices that a step brings
    _calls: Any = None

    def close(self) -> None:
        """No more calls will be added."""
        self._calls = (Call * len(self.ops))(*(Call(op, ctypes.pointer(a)) for op, a in zip(self.ops, self.args)))

    @property
    def nbytes(self) -> int:
        """Of the results of its calls: their arena is the first thing that is kept."""
        return int(self.kept[0].nbytes)

    def __call__(self) -> None:
        for guard in self.guards.values():
            guard()
        self.pool.run_list(self._calls, len(self.ops))


class Pool:
    """Threads that run kernels of one level. One thread at a time may use it; it is safe to use after a fork."""

    def __init__(self, level: str, threads: int):
        self.level, self.threads = level, threads
        self.program: Program | None = None  # where calls are recorded, if they are
        self._lib = library()
        self._handle = self._lib.gramme_pool_new(levels()[level], threads)
        if not self._handle:
            raise MemoryError("no memory for the threads' working space")

    def call(self, op: Op, pointers: Sequence[int | None], sizes: Sequence[int], floats: Sequence[float] = (),
             keep: Any = None) -> None:
        """Run one operation, and record it where a program is open. `keep` holds the pointers' arrays alive."""
        args = Args((ctypes.c_void_p * POINTERS)(*pointers), (ctypes.c_int64 * SIZES)(*sizes),
                    (ctypes.c_float * FLOATS)(*floats))
        if self.program is not None:
            self.program.ops.append(op)
            self.program.args.append(args)
            self.program.kept.append(keep)
        self.run_list((Call * 1)(Call(op, ctypes.pointer(args))), 1)

    def run_list(self, calls: Any, count: int) -> None:
        self._lib.gramme_run(self._handle, calls, count)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.gramme_pool_free(self._handle)


def forced() -> str:
    """The level that GRAMME_CPU_LEVEL names, or nothing. Raises ConfigError for one that this processor lacks."""
    wanted = os.environ.get("GRAMME_CPU_LEVEL", "")
    if wanted == "off":
        raise ConfigError("the CPU kernels are switched off by GRAMME_CPU_LEVEL")
    if wanted and wanted not in levels():
        raise ConfigError(f"GRAMME_CPU_LEVEL={wanted!r:.40}: this processor runs {', '.join(levels())}")
    return wanted


def choose(passes: Callable[[str], bool]) -> tuple[str, tuple[str, ...]]:
    """The best level that `passes` its known answers, and a sentence for each that did not. Raises ConfigError."""
    wanted, notes = forced(), []
    for name in [wanted] if wanted else levels():
        if name in UNTESTED and not wanted:
            notes.append(f"the {name} kernels are untested and not used; GRAMME_CPU_LEVEL={name} takes them")
        elif passes(name):
            return name, tuple(notes)
        else:
            notes.append(f"the {name} kernels gave a wrong answer on this machine and are not used")
    raise ConfigError("; ".join(notes))
