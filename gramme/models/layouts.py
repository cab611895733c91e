"""Laid-out weights in a file of their own: the next start maps them, reads no tensor and lays nothing out.

One file a model under $XDG_CACHE_HOME/gramme/layouts, its name made of the source's path and of all that decides the
contents: the source's size, time and head, how weights are stored, VERSION. In it: arrays one behind the other, each on
a page of its own, then an index in JSON, the index's place and MAGIC. A file appears whole or not at all; one that is
not as it should be is made again. Knows no checkpoint format and no kernel.
"""
import json
import math
import mmap
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from gramme.kernels.load import Backend
from gramme.kernels.ops import Permuted
from gramme.kernels.reference import storage_dtype
from gramme.plan.hardware import cache_directory
from gramme.plan.units import gb
from gramme.quant.weights import Dense, Integers, Weight

VERSION = 3  # of the file and of the layouts of all kernels
MAGIC = b"gramme-layout-1\n"
PAGE = 4096
LEAST_BYTES = 64 << 20  # of weights: smaller ones are laid out in a blink
HEAD_BYTES = 1 << 16  # of a source file, beside its size and time


def folder() -> Path:
    return cache_directory() / "layouts"


def layout_path(name: str, sources: Sequence[Path], dtype: str) -> Path:
    """Where the weights of these files, stored so, are kept."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name or name)[:40]
    where, what = blake2b(digest_size=8), blake2b(f"{VERSION} {dtype}".encode(), digest_size=8)
    for path in sources:
        stat = path.stat()
        where.update(os.fsencode(path.resolve()))
        with path.open("rb") as f:
            what.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() + f.read(HEAD_BYTES))
    return folder() / f"{plain}-{where.hexdigest()}-{what.hexdigest()}.layout"


def installed() -> list[tuple[str, int]]:
    """(name, bytes) of every file of laid-out weights."""
    return sorted((p.stem, p.stat().st_size) for p in folder().glob("*.layout"))


def remove(name: str) -> bool:
    """Remove the files whose name begins so; whether there were any."""
    found = [p for p in folder().glob("*.layout") if p.stem.startswith(name)]
    for path in found:
        path.unlink()
    return bool(found)


class Layouts:
    """The kept weights of one model: read where they are kept, else made and kept."""

    def __init__(self, path: Path, backend: Backend):
        self.path, self._backend = path, backend
        self._map, self._index = _open(path)
        self._new: _Writer | None = None if self._index else _writer(path)

    @property
    def mapped(self) -> bool:
        return bool(self._index)

    def weight(self, name: str, bias: Any, make: Callable[[], Weight]) -> Weight:
        if self._index:
            return self._weight(self._index[name], bias)
        weight = make()
        if self._new is not None:
            self._new.add(name, weight)
        return weight

    def close(self) -> None:
        """All weights have been asked for: what is new is kept."""
        if self._new is not None:
            self._new.close()
            for other in self.path.parent.glob(self.path.stem.rpartition("-")[0] + "-*.layout"):
                if other != self.path:  # of the same files before they changed, or stored in another way
                    other.unlink(missing_ok=True)

    def _weight(self, entry: dict[str, Any], bias: Any) -> Weight:
        arrays = {key: self._array(*place) for key, place in entry["arrays"].items()}
        order, places = arrays.pop("order", None), arrays.pop("places", None)
        packed = self._backend.packed(**entry["packed"] | {"shape": tuple(entry["packed"]["shape"])} | arrays)
        if "act" not in entry:
            return Dense(self._backend.ops, packed, bias)
        act = entry["act"] if order is None else Permuted(entry["act"], order, places)
        return Integers(self._backend.ops, packed, tuple(entry["shape"]), entry["nbytes"], act, bias)

    def _array(self, offset: int, shape: list[int], dtype: str) -> np.ndarray:
        kind = storage_dtype(dtype)
        return np.frombuffer(self._map, kind, math.prod(shape), offset).reshape(shape)


class _Writer:
    """Writes beside the file's place and renames when all is there; gives up silently when the disk does."""

    def __init__(self, path: Path):
        self._path, self._part = path, path.with_suffix(f".{os.getpid()}")
        self._file, self._index = self._part.open("wb"), {}

    def add(self, name: str, weight: Weight) -> None:
        packed, arrays = {}, {}
        for f in fields(weight.packed):
            value = getattr(weight.packed, f.name)
            if isinstance(value, np.ndarray):
                arrays[f.name] = self._write(value)
            elif value is not None:
                packed[f.name] = value
        entry: dict[str, Any] = {"packed": packed, "arrays": arrays}
        if isinstance(weight, Integers):
            act = weight.act
            if isinstance(act, Permuted):
                arrays |= {"order": self._write(act.order), "places": self._write(act.places)}
                act = act.act
            entry |= {"act": act, "shape": weight.shape, "nbytes": weight.nbytes}
        self._index[name] = entry

    def close(self) -> None:
        start = self._file.tell()
        self._file.write(json.dumps(self._index).encode() + start.to_bytes(8, "little") + MAGIC)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)

    def __del__(self) -> None:  # a load that failed leaves nothing behind
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _write(self, a: np.ndarray) -> tuple[int, list[int], str]:
        self._file.seek(-(-self._file.tell() // PAGE) * PAGE)
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(a).view(np.uint8).data)
        return offset, list(a.shape), a.dtype.name


def refusal(sources: Sequence[Path], backend: Backend, nbytes: int) -> str:
    """Why laid-out weights are not kept, if they are not."""
    if backend.packed is None:
        return f"the {backend.name} kernels lay nothing out in memory"
    if not sources:
        return "the weights come from no file"
    return f"{gb(nbytes)} of weights are laid out in a blink" if nbytes < LEAST_BYTES else ""


def layouts(name: str, sources: Sequence[Path], backend: Backend, dtype: str, nbytes: int) -> Layouts | None:
    """None: nothing is kept. That `nbytes` will be written is said on standard error, or that there is no room."""
    if refusal(sources, backend, nbytes):
        return None
    kept = Layouts(layout_path(name, sources, dtype), backend)
    if kept.mapped:
        return kept
    if kept._new is None or shutil.disk_usage(kept.path.parent).free < 2 * nbytes:
        print(f"gramme: no room in {folder()} to keep {gb(nbytes)} of laid-out weights", file=sys.stderr)
        return None
    print(f"gramme: keeping {gb(nbytes)} of laid-out weights in {folder()} for the next start (--no-layout-cache: "
          "not)", file=sys.stderr)
    return kept


def _writer(path: Path) -> _Writer | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Writer(path)
    except OSError:
        return None


def _open(path: Path) -> tuple[mmap.mmap | None, dict[str, Any]]:
    """The mapped file and its index; nothing when it is missing or broken: it is a cache."""
    try:
        with path.open("rb") as f:
            flags = mmap.MAP_SHARED | (0 if _in_memory(f.fileno()) else getattr(mmap, "MAP_POPULATE", 0))
            whole = mmap.mmap(f.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        end = len(whole) - len(MAGIC) - 8
        start = int.from_bytes(whole[end : end + 8], "little")
        if whole[end + 8 :] != MAGIC or not 0 < start < end:
            return None, {}
        index = json.loads(whole[start:end])
        good = all(offset >= 0 and offset + math.prod(shape) * storage_dtype(dtype).itemsize <= start
                   for entry in index.values() for offset, shape, dtype in entry["arrays"].values())
        return (whole, index) if good else (None, {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, {}


def _in_memory(file: int) -> bool:
    """Whether the system holds the file, by 64 bytes of it: then threads map its pages faster than the call that
    populates, one page after the other. Where it must be read, that call reads it in its order."""
    size, nowait = os.fstat(file).st_size, getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        return False
    try:
        return all(os.preadv(file, [bytearray(1)], size * i // 64, nowait) for i in range(64))
    except OSError:  # BlockingIOError: not there
        return False
