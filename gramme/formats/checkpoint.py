"""A model directory's tensors by name, whatever files they stand in. Knows no architecture."""
from pathlib import Path
from typing import Any

import numpy as np

from gramme.config import ModelError
from gramme.formats.files import read_json
from gramme.formats.safetensors import SafetensorsFile

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Checkpoint:
    """model.safetensors, its shards, or Mistral's consolidated.safetensors."""

    notes: tuple[str, ...] = ()

    def __init__(self, directory: Path):
        self.directory = directory
        files = [SafetensorsFile(path) for path in self._paths()]
        self._home: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.names:
                if name in self._home:
                    first = self._home[name].path.name
                    raise ModelError(f"tensor {name!r:.120} stands in {first} and in {file.path.name}")
                self._home[name] = file
        self._check_index()

    @property
    def names(self) -> list[str]:
        return list(self._home)

    def home(self, name: str) -> str:
        """The file's name; the directory's for what stands in no file under that name."""
        return self._home[name].path.name if name in self._home else self.directory.name

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self._home:
            raise ModelError(f"{self.directory.name}: there is no tensor {name!r:.120}")
        return self._home[name].tensor(name)

    def form(self, name: str, columns: int) -> None:
        """Floats all: packed matrices are `quantised.Quantised`'s."""

    def file_of(self, name: str) -> str:
        """The name of the file that a tensor stands in; the directory's where there is none."""
        return self._home[name].path.name if name in self._home else self.directory.name

    def _paths(self) -> list[Path]:
        d = self.directory
        if (d / INDEX).exists():
            return [d / name for name in sorted({_plain(n) for n in self._weight_map().values()})]
        for pattern in ("model.safetensors", "consolidated.safetensors", "consolidated-*.safetensors"):
            if found := sorted(d.glob(pattern)):
                return found
        if any(p.suffix in PICKLES for p in d.iterdir()):
            raise ModelError(f"{d} holds pickled weights only, which can run code when read; convert to safetensors")
        raise ModelError(f"{d} holds no model.safetensors")

    def _weight_map(self) -> dict[str, Any]:
        found = read_json(self.directory, INDEX).get("weight_map")
        if not isinstance(found, dict):
            raise ModelError(f"{INDEX} has no weight_map")
        return found

    def _check_index(self) -> None:
        if not (self.directory / INDEX).exists():
            return
        for name, file in self._weight_map().items():
            if name not in self._home or self._home[name].path.name != file:
                raise ModelError(f"{INDEX} says that tensor {name!r:.120} stands in {file!r:.80}, it does not")


def _plain(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise ModelError(f"{INDEX}: a shard must be a file of the same directory, not {name!r:.80}")
    return name
