"""What MODEL means: a directory, a hub id, dummy:SHAPE, or nothing for the embedded model; opened, not yet loaded."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.formats.checkpoint import Checkpoint
from gramme.formats.store import resolve
from gramme.models.config import read_config, read_generation
from gramme.models.dummy import dummy
from gramme.models.load import Source, random_source, shapes
from gramme.models.names import checkpoint_source

EMBEDDED = Path(__file__).parent.parent / "embedded"


@dataclass(frozen=True)
class Opened:
    """A model's facts and where its tensors come from."""

    name: str
    config: ModelConfig
    defaults: GenerationDefaults
    source: Source
    text_directory: Path  # tokenizer and chat template
    check_all_used: Callable[[], None]  # raises ModelError naming tensors that loading neither used nor skipped


def open_model(engine: EngineConfig) -> Opened:
    """Reads headers and configs only. Raises ModelError with one line that names the file and what is wrong."""
    text = Path(engine.tokenizer) if engine.tokenizer else None
    if engine.model.startswith("dummy:"):
        m = dummy(engine.model.removeprefix("dummy:"))
        return Opened(engine.model, m, GenerationDefaults(), random_source(m), text or EMBEDDED, lambda: None)
    directory = EMBEDDED if not engine.model else resolve(engine.model, engine.revision)
    config, checkpoint = read_config(directory), Checkpoint(directory)
    source, check_all_used = checkpoint_source(checkpoint, config, dict(shapes(config)))
    name = engine.model or "gramme-nano"
    return Opened(name, config, read_generation(directory, engine.generation_config), source, text or directory,
                  check_all_used)
