"""From a model directory's JSON to a ModelConfig and to sampling defaults: which family it is, or why it is refused."""
from collections.abc import Callable
from pathlib import Path

from gramme.config import GenerationDefaults, ModelConfig, ModelError
from gramme.formats.fields import Fields
from gramme.formats.files import read_json
from gramme.models.families import llama, mistral, qwen2, qwen3

FAMILIES = {family.ARCHITECTURE: family.config for family in (llama, mistral, qwen2, qwen3)}


def read_config(directory: Path) -> ModelConfig:
    """Raises ModelError naming the file and the field."""
    if not (directory / "config.json").exists() and (directory / "params.json").exists():
        return mistral.params(Fields("params.json", read_json(directory, "params.json")))
    c = Fields("config.json", read_json(directory, "config.json"))
    return _family(c)(c)


def _family(c: Fields) -> Callable[[Fields], ModelConfig]:
    """By `architectures`; by `model_type` in the files that lack it, as those of base models do."""
    names = c.raw.get("architectures")
    if names is None:
        names = [name for name in FAMILIES if name.removesuffix("ForCausalLM").lower() == c.raw.get("model_type")]
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    raise ModelError(f"config.json: architectures {names or c.raw.get('model_type')!r:.80} is not supported; "
                     f"there are: {', '.join(FAMILIES)}")


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
        temperature=0.0 if greedy else c.number("temperature", None, high=2), top_p=c.number("top_p", None, high=1),
        top_k=c.integer("top_k", None, low=0), min_p=c.number("min_p", None, low=-1, high=1),
        repetition_penalty=c.number("repetition_penalty", None), eos_token_ids=c.ids("eos_token_id"),
    )
