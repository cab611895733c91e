"""What MODEL means: a directory, a GGUF file, a hub id, dummy:SHAPE, or nothing for the embedded model; opened only."""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.formats.gguf import GGUFFile
from gramme.formats.quantised import Foretold, open_checkpoint
from gramme.formats.quantization import quantization_config
from gramme.formats.store import resolve
from gramme.models.config import read_config, read_generation
from gramme.models.dummy import dummy
from gramme.models.gguf import gguf_config, gguf_generation, gguf_layout
from gramme.models.load import Matrix, Source, random_source, shapes
from gramme.models.names import HF, MISTRAL, Layout, Tensors, source_of, stored, their_name
from gramme.text.source import Metadata, TextSource

EMBEDDED = Path(__file__).parent.parent / "embedded"


@dataclass(frozen=True)
class Opened:
    """A model's facts and where its tensors come from."""

    name: str
    config: ModelConfig
    defaults: GenerationDefaults
    source: Source
    text: TextSource  # tokenizer and chat template
    check_all_used: Callable[[], None]  # raises ModelError naming tensors that loading neither used nor skipped
    files: tuple[Path, ...] = ()  # that hold the tensors


def open_model(engine: EngineConfig) -> Opened:
    """Reads headers and configs only. Raises ModelError with one line that names the file and what is wrong."""
    opened = _open(engine)
    return replace(opened, text=Path(engine.tokenizer)) if engine.tokenizer else opened


def _open(engine: EngineConfig) -> Opened:
    if engine.model.startswith("dummy:"):
        m = dummy(engine.model.removeprefix("dummy:"))
        return Opened(engine.model, m, GenerationDefaults(), random_source(m), EMBEDDED, lambda: None)
    path = resolve(engine.model, engine.revision) if engine.model else EMBEDDED
    return _open_directory(path, engine) if path.is_dir() else _open_gguf(path, engine)


def _open_directory(path: Path, engine: EngineConfig) -> Opened:
    m, checkpoint = read_config(path), open_checkpoint(path)
    layout = MISTRAL if "tok_embeddings.weight" in checkpoint.names else HF
    defaults = read_generation(path, engine.generation_config)
    files = (*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.json")))
    return _opened(engine.model or "gramme-nano", m, defaults, checkpoint, layout, path, files)


def _open_gguf(path: Path, engine: EngineConfig) -> Opened:
    file = GGUFFile(path)
    m = gguf_config(file)
    own = engine.generation_config == "auto"
    defaults = gguf_generation(file) if own else read_generation(path.parent, engine.generation_config)
    return _opened(engine.model, m, defaults, file, gguf_layout(file), Metadata(path.name, file.metadata), (path,))


def _opened(name: str, m: ModelConfig, defaults: GenerationDefaults, tensors: Tensors, layout: Layout,
            text: TextSource, files: tuple[Path, ...]) -> Opened:
    wanted = dict(shapes(m))
    source, check_all_used = source_of(tensors, layout, m, wanted)
    m = replace(m, stored=stored(tensors, layout, m, wanted), notes=tensors.notes)
    return Opened(name, m, defaults, source, text, check_all_used, files)


def foretold(directory: Path) -> ModelConfig:
    """What a directory's JSON alone says of a model, before its weights are here; of the embedding table, that it is
    floats unless it is named. Raises ModelError naming the file and the field."""
    m, found = read_config(directory), quantization_config(directory)
    if found is None:
        return m
    tensors = Foretold(found)
    packed = {"embed": tensors.table(their_name("embed", HF).removesuffix(".weight")), "head": tensors.head}
    wanted = {name: shape for name, shape in shapes(m) if packed.get(name, True)}
    return replace(m, stored=stored(tensors, HF, m, wanted), notes=tensors.notes)


def watched(opened: Opened, progress: Callable[[int, int], None]) -> Opened:
    """The same model; `progress` is told how many of its parameters have been read, and how many there are."""
    done = 0

    def source(name: str) -> Matrix:
        nonlocal done
        a = opened.source(name)
        done += math.prod(a.shape)
        progress(done, opened.config.parameters)
        return a

    return replace(opened, source=source)
