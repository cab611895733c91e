"""From a model directory's JSON to a ModelConfig and to sampling defaults: which family it is, or why it is refused."""
from pathlib import Path

from gramme.config import GenerationDefaults, ModelConfig, ModelError
from gramme.formats.checkpoint import read_json
from gramme.models.families import llama, mistral, qwen2, qwen3
from gramme.models.fields import Fields

FAMILIES = {family.ARCHITECTURE: family.config for family in (llama, mistral, qwen2, qwen3)}


def read_config(directory: Path) -> ModelConfig:
    """Raises ModelError naming the file and the field."""
    if not (directory / "config.json").exists() and (directory / "params.json").exists():
        return mistral.params(Fields("params.json", read_json(directory, "params.json")))
    c = Fields("config.json", read_json(directory, "config.json"))
    if isinstance(quantised := c.raw.get("quantization_config"), dict):
        raise ModelError(f"config.json: {quantised.get('quant_method', 'quantised')!r:.40} weights cannot be read yet")
    names = c.raw.get("architectures") or []
    family = next((FAMILIES[n] for n in names if n in FAMILIES), None) if isinstance(names, list) else None
    if family is None:
        raise ModelError(f"config.json: architectures {names!r:.80} is not supported; there are: {', '.join(FAMILIES)}")
    return family(c)


def read_generation(directory: Path, mode: str) -> GenerationDefaults:
    """generation_config.json of the model ("auto"), nothing ("none"), or a directory or file that the user names."""
    if mode == "none":
        return GenerationDefaults()
    path = directory / "generation_config.json" if mode == "auto" else Path(mode)
    path = path / "generation_config.json" if path.is_dir() else path
    if mode == "auto" and not path.exists():
        return GenerationDefaults()
    c = Fields(path.name, read_json(path.parent, path.name))
    greedy = c.raw.get("do_sample") is False or c.raw.get("temperature") == 0
    return GenerationDefaults(
        temperature=0.0 if greedy else c.number("temperature", None), top_p=c.number("top_p", None, high=1),
        top_k=c.integer("top_k", None, low=0), min_p=c.number("min_p", None, low=-1, high=1),
        repetition_penalty=c.number("repetition_penalty", None), eos_token_ids=c.ids("eos_token_id"),
    )
