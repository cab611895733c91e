"""What a tokenizer and a template are read from: a model's directory, or the metadata of a GGUF file."""
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAX_TEXT_BYTES = 4 << 20  # of a configuration file or a template


class Metadata(NamedTuple):
    file: str  # its name, for messages
    values: Mapping[str, Any]


TextSource = Path | Metadata


def read_text(path: Path) -> str:
    """Raises OSError, or ValueError for what is no regular file, too large, or not UTF-8."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TEXT_BYTES:
        raise ValueError(f"it must be a file of at most {MAX_TEXT_BYTES} bytes")
    return path.read_text("utf-8")
