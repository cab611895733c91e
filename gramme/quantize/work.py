"""The folder beside the result in which a run keeps what it has finished, so that a kill costs one layer.

    OUT.partial/run.json                what is being made, of what: another run does not go on with it
                stream-00012.safetensors  the calibration text's residual stream before layer 12
                layer-00011.safetensors   layer 11 as every recipe made it

A layer's file appears, whole, after the stream that follows it; only then is the stream before it deleted. So
whenever a layer is there, the next can begin.
"""
import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped
from gramme.formats.safetensors import SafetensorsFile, write_safetensors
from gramme.quantize.layer import Solved

LOCK = "lock"


class Work:
    def __init__(self, path: Path, run: Mapping[str, object]):
        """Begin, or go on with, the run that is described by `run`. Raises ConfigError when another one is there."""
        self.path = path
        self.path.mkdir(parents=True, exist_ok=True)
        self._unlock = self._alone()
        if not (self.path / "run.json").exists():
            for left in (p for p in self.path.iterdir() if p.name != LOCK):
                left.unlink()
            write_text(self.path / "run.json", json.dumps(run))
        elif json.loads((self.path / "run.json").read_text()) != json.loads(json.dumps(run)):
            raise ConfigError(f"{self.path} is an unfinished run with other options or texts; remove it to start anew")

    @property
    def layers_done(self) -> int:
        done = 0
        while self._layer(done).exists():
            done += 1
        return done

    def save_layer(self, i: int, solved: Mapping[str, Solved], losses: Mapping[str, object],
                   streams: list[np.ndarray]) -> None:
        """Layer i by recipe, and the streams that leave it."""
        self.save_streams(i + 1, streams)
        write_text(self.path / f"losses-{i:05}.json", json.dumps(losses))
        write_safetensors(self._layer(i), _flat(solved))
        self._stream(i).unlink(missing_ok=True)

    def save_streams(self, i: int, streams: list[np.ndarray]) -> None:
        write_safetensors(self._stream(i), {str(n): a for n, a in enumerate(streams)})

    def streams(self, i: int) -> list[np.ndarray] | None:
        if not self._stream(i).exists():
            return None
        file = SafetensorsFile(self._stream(i))
        return [np.array(file.tensor(str(n))) for n in range(len(file.names))]

    def losses(self, i: int) -> dict[str, dict[str, float]]:
        return json.loads((self.path / f"losses-{i:05}.json").read_text())

    def keep(self, recipe: str, i: int, solved: Solved) -> None:
        """Another solution for layer i of one recipe, in place of the first."""
        write_safetensors(self._kept(recipe, i), _flat({recipe: solved}))

    def layer(self, recipe: str, i: int) -> Solved:
        kept = self._kept(recipe, i)
        return _deep(SafetensorsFile(kept if kept.exists() else self._layer(i)), recipe)

    def forget_kept(self) -> None:
        for path in self.path.glob("kept-*"):
            path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path)
        self._unlock()

    def _alone(self) -> Callable[[], object]:
        """Takes the lock, which goes with the process, however that ends, or when what is returned is called."""
        lock = os.open(self.path / LOCK, os.O_WRONLY | os.O_CREAT)
        unlock = weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            unlock()
            raise ConfigError(f"{self.path}: another run is at work there") from None
        return unlock

    def _layer(self, i: int) -> Path:
        return self.path / f"layer-{i:05}.safetensors"

    def _stream(self, i: int) -> Path:
        return self.path / f"stream-{i:05}.safetensors"

    def _kept(self, recipe: str, i: int) -> Path:
        return self.path / f"kept-{recipe}-{i:05}.safetensors"


def write_text(path: Path, text: str) -> None:
    """Atomic: written beside, synced, renamed."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)


def _flat(solved: Mapping[str, Solved]) -> dict[str, np.ndarray]:
    out = {}
    for recipe, tensors in solved.items():
        for name, a in tensors.items():
            parts = {"": a} if isinstance(a, np.ndarray) else {
                f"/{a.bits}/codes": a.codes, f"/{a.bits}/scales": a.scales, f"/{a.bits}/offsets": a.offsets}
            out |= {f"{recipe}/{name}{part}": value for part, value in parts.items()}
    return out


def _deep(file: SafetensorsFile, recipe: str) -> Solved:
    out: Solved = {}
    for key in file.names:
        mine, name, *rest = key.split("/")
        if mine != recipe:
            continue
        if not rest:
            out[name] = file.tensor(key)
        elif rest[1] == "codes":
            codes, scales, offsets = (file.tensor(f"{mine}/{name}/{rest[0]}/{part}")
                                      for part in ("codes", "scales", "offsets"))
            out[name] = Grouped(codes, scales, offsets, int(rest[0]))
    return out
