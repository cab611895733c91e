"""Reads JSON files of a bounded size that are regular files. Knows no tensor, and needs no numpy."""
import json
import stat
from pathlib import Path
from typing import Any

from gramme.config import ModelError

MAX_JSON_BYTES = 4 << 20  # the worst JSON of that size takes 26 times as much when parsed


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Raises ModelError when the file is missing, too large or not a JSON object."""
    path = directory / name
    if (size := regular_size(path)) > MAX_JSON_BYTES:
        raise ModelError(f"{name} has {size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{directory}: {name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not valid JSON: {error!s:.80}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name} is not a JSON object")
    return value


def regular_size(path: Path) -> int:
    """Bytes of a file that can be read without waiting: a FIFO or a device raises ModelError."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path.name}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path.name} is not a regular file")
    return status.st_size


def refuse_pickle(path: Path, head: bytes) -> None:
    """Raises ModelError for what begins as a pickle or a zip archive of pickles does, whatever it is called."""
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        raise ModelError(f"{path.name} is a pickle, which can run code when read; convert it to safetensors")
