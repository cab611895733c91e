"""Where a model directory says how its weights are packed. Knows no tensor and no format of packing."""
from pathlib import Path

from gramme.config import ModelError
from gramme.formats.fields import Fields
from gramme.formats.files import read_json


def quantization_config(directory: Path) -> Fields | None:
    """In config.json; in a file of its own before 2024. Raises ModelError naming the file."""
    if (directory / "config.json").exists():
        raw = read_json(directory, "config.json")
        found = raw.get("quantization_config", raw.get("compression_config"))
        if found is not None:
            if not isinstance(found, dict):
                raise ModelError(f"config.json: quantization_config must be an object, not {found!r:.60}")
            return Fields("config.json: quantization_config", found)
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (directory / name).exists():
            return Fields(name, {"quant_method": method} | read_json(directory, name))
    return None
