"""What a tokenizer and a template are read from: a model's directory, or the metadata of a GGUF file."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Metadata(NamedTuple):
    file: str  # its name, for messages
    values: Mapping[str, Any]


TextSource = Path | Metadata
