"""Which of several ways is fastest on this device: measured once for each shape and kept on disk.

One JSON file for each device and version of the kernels, under $XDG_CACHE_HOME/gramme/choices. Compiled kernels are
cached by Triton itself (TRITON_CACHE_DIR).
"""
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any


class Choices:
    """`time` runs something and says how many milliseconds it took; None: nothing is measured, the first way counts."""

    def __init__(self, path: Path, time: Callable[[Callable[[], Any]], float] | None):
        self.path, self.time = path, time
        self.known: dict[str, str] = {}
        with suppress(OSError, ValueError):  # a file that is missing or broken is made anew
            read = json.loads(path.read_text())
            self.known = {k: v for k, v in read.items() if isinstance(v, str)} if isinstance(read, dict) else {}

    def best(self, key: str, ways: Mapping[str, Callable[[], Any]]) -> str:
        """The name of the fastest way, as measured now or before; a remembered name that is no way is measured anew."""
        if self.known.get(key) in ways:
            return self.known[key]
        if self.time is None:
            return next(iter(ways))
        took = {name: self.time(run) for name, run in ways.items()}
        self.known[key] = min(took, key=took.get)
        self._save()
        return self.known[key]

    def _save(self) -> None:
        with suppress(OSError):  # a cache that cannot be written is measured again next time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(self.known, indent=0, sort_keys=True))
            part.replace(self.path)


def path_of(device: str, versions: str) -> Path:
    """Where the choices of a device stand, for these versions of compiler and kernels."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sources = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    key = blake2b(versions.encode() + sources, digest_size=6).hexdigest()
    return cache / "gramme" / "choices" / f"{device.replace(' ', '-')}-{key}.json"
