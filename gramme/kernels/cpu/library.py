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
    _fields_ = [("op", ctypes.c_int64), ("args", ctypes.c_void_p)]


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
    arena: Any  # of the calls' results
    kept: Any = field(default_factory=dict)  # what else the pointers point to, by id until it is closed
    calls: list[tuple[int, Args]] = field(default_factory=list)  # until it is closed
    guards: dict[Any, Callable[[], object]] = field(default_factory=dict)  # checks of the indices that a step brings
    _closed: Any = None

    def close(self) -> None:
        """No more calls will be added. They go into one array: objects of their own take three times as much."""
        args = (Args * len(self.calls))(*(a for _, a in self.calls))
        each, first = ctypes.sizeof(Args), ctypes.addressof(args)
        calls = (Call * len(args))(*((op, first + i * each) for i, (op, _) in enumerate(self.calls)))
        self._closed, self.calls, self.kept = (calls, args), [], list(self.kept.values())

    @property
    def nbytes(self) -> int:
        """Of results that found no place in the room."""
        return int(self.arena.nbytes)

    def __call__(self) -> None:
        for guard in self.guards.values():
            guard()
        calls, _ = self._closed
        self.pool.run_list(calls, len(calls))


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
             keep: Sequence[Any] = ()) -> None:
        """Run one operation, and record it where a program is open. `keep`: the pointers' arrays, to be held alive."""
        args = Args((ctypes.c_void_p * POINTERS)(*pointers), (ctypes.c_int64 * SIZES)(*sizes),
                    (ctypes.c_float * FLOATS)(*floats))
        if self.program is not None:
            self.program.calls.append((op, args))
            self.program.kept |= {id(a): a for a in keep}
        self.run_list((Call * 1)((op, ctypes.addressof(args))), 1)

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
