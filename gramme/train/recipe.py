"""What a training run is: its data, mixture, model and schedule, read from one TOML file. Knows no torch."""
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gramme.config import ConfigError, ModelConfig


@dataclass(frozen=True)
class Files:
    """Files, relative to the data folder."""

    pairs: str  # zip with fra.txt: English, tab, French
    novels: dict[str, str]  # language -> tar of .txt files
    help: str = ""  # tab-separated: file, id, English, French
    held_out: int = 1000  # pairs


@dataclass(frozen=True)
class Recipe:
    steps: int
    start: str = ""  # whose weights and tokenizer the run begins with: a directory, a hub id, "embedded"; "": none
    batch_tokens: int = 1024  # of a micro-batch
    micro_batches: int = 2  # a step: their gradients are added up
    workers: int = 2  # threads of one core each that share out a step's micro-batches
    length: int = 256  # tokens of the longest row
    learning_rate: float = 2e-3  # AdamW's
    muon_rate: float = 0.0  # Muon's, for the matrices; 0: AdamW for all
    floor: float = 0.02  # of the learning rate, at the end
    schedule: str = "wsd"  # warm-up, then: "wsd" level and straight down in the last decay_steps; "cosine"
    warmup_steps: int = 200
    decay_steps: int = 0
    weight_decay: float = 0.1  # of matrices only
    question_weight: float = 0.0  # of a question's tokens in the loss, as a part of its answer's; 0: they are only read
    clip: float = 1.0  # norm of the gradient
    betas: tuple[float, float] = (0.9, 0.98)
    seed: int = 0
    bf16: bool = False  # products in bfloat16; weights, moments and sums stay float32
    compiled: bool = False  # what stands between products is compiled by torch.compile; a C++ compiler is needed
    loss_chunk_tokens: int = 1024  # whose logits exist at a time
    checkpoint_s: float = 60.0
    check_steps: int = 250  # between two looks at the held-out loss


@dataclass(frozen=True)
class RunConfig:
    files: Files
    mix: dict[str, float]  # kind of row -> share of the micro-batches
    model: ModelConfig
    recipe: Recipe
    language_weights: dict[str, float] = field(default_factory=lambda: {"en": 1.0, "fr": 1.0})


def read_config(file: Path) -> RunConfig:
    """Raises ConfigError naming the file, the table and the key."""
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    for table in ("files", "mix", "model", "recipe"):
        if table not in raw:
            raise ConfigError(f"{file}: there is no table [{table}]")
    tables = {name: value for name, value in raw.items() if isinstance(value, dict)}  # the rest are flags
    config = _record(RunConfig, {
        **tables, "files": _record(Files, raw["files"], f"{file}: [files]"),
        "model": _record(ModelConfig, raw["model"], f"{file}: [model]"),
        "recipe": _record(Recipe, raw["recipe"], f"{file}: [recipe]"),
    }, f"{file}")
    _check(config, file)
    return config


def _record(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where} has no key {key!r}; there are: {', '.join(sorted(known))}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check(config: RunConfig, file: Path) -> None:
    r = config.recipe
    for name in ("steps", "batch_tokens", "micro_batches", "workers", "length", "loss_chunk_tokens", "check_steps"):
        if not isinstance(getattr(r, name), int) or getattr(r, name) < 1:
            raise ConfigError(f"{file}: [recipe] {name} must be a whole number above 0, not {getattr(r, name)!r}")
    if r.schedule not in ("wsd", "cosine"):
        raise ConfigError(f"{file}: [recipe] schedule must be wsd or cosine, not {r.schedule!r}")
    if r.length > min(r.batch_tokens, config.model.max_positions):
        raise ConfigError(f"{file}: [recipe] length {r.length} exceeds batch_tokens {r.batch_tokens} or the model's "
                          f"max_positions {config.model.max_positions}")
    if not isinstance(r.question_weight, (int, float)) or not 0 <= r.question_weight <= 1:
        raise ConfigError(f"{file}: [recipe] question_weight must be from 0 to 1, not {r.question_weight!r}")
    if not config.mix or min(config.mix.values()) < 0 or sum(config.mix.values()) <= 0:
        raise ConfigError(f"{file}: [mix] must give each kind of row a share of at least 0, not all of them 0")
