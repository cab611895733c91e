"""A run from its config file to a model directory: texts, tokenizer, rows, training, curves, export."""
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gramme.config import ConfigError, EngineConfig
from gramme.models.load import Source
from gramme.models.open import open_model
from gramme.train import dialogues, rows
from gramme.train.curve import draw
from gramme.train.export import TEXT_FILES, export
from gramme.train.recipe import RunConfig, read_config
from gramme.train.rows import Batch, Dialogues, Kind, Mix, Stream
from gramme.train.texts import Texts, parts, read_texts
from gramme.train.tokenizer import save_tokenizer, train_tokenizer
from gramme.train.trainer import train

CHECK_ROWS = 400  # held-out translations whose loss is logged
HELD_OUT = "held_out.json"
SHAPE = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ff_width", "rope", "tied_embeddings",
         "qkv_bias", "o_bias", "mlp_bias", "qk_norm")  # what a run and the model that it begins with share


def run(config_file: Path, data: Path, folder: Path) -> Path:
    """Trains, or goes on training, in `folder`; returns the directory of the model."""
    config = read_config(config_file)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config_file, folder / "config.toml")
    start = starting_weights(config, folder) if config.recipe.start else None
    kinds = _kinds(config, data, folder)
    if unknown := set(config.mix) - set(kinds):
        raise ConfigError(f"{config_file}: [mix] names {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    mixed = Mix({name: kinds[name] for name in config.mix}, config.mix, config.recipe.seed)
    decoder = train(config.model, mixed, config.recipe, folder, list(_checked(config, folder)), start)
    draw(folder / "log.jsonl", folder / "curve.png")
    export(decoder, config.model, folder, folder / "model")
    return folder / "model"


def starting_weights(config: RunConfig, folder: Path) -> Source:
    """The weights that the run begins with; their tokenizer and template become the run's."""
    name = config.recipe.start
    opened = open_model(EngineConfig(model="" if name == "embedded" else name))
    differing = [key for key in SHAPE if getattr(opened.config, key) != getattr(config.model, key)]
    if differing:
        raise ConfigError(f"[recipe] start = {name!r}: that model differs from [model] in {', '.join(differing)}")
    missing = [file for file in TEXT_FILES if not isinstance(opened.text, Path) or not (opened.text / file).is_file()]
    if missing:
        raise ConfigError(f"[recipe] start = {name!r}: that model has no {', '.join(missing)}")
    for file in TEXT_FILES:
        if not (folder / file).exists():
            shutil.copy(opened.text / file, folder / file)
    return opened.source


def _kinds(config: RunConfig, data: Path, folder: Path) -> dict[str, Kind]:
    """The rows of a new run are cut once and kept beside it, with its tokenizer and its held-out texts."""
    recipe, kept = config.recipe, folder / "rows.npz"
    if not kept.exists():
        texts = _texts(config, data)
        (folder / HELD_OUT).write_text(json.dumps(
            {"pairs": texts.held_out_pairs, "novels": texts.held_out_novels}, ensure_ascii=False))
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(train_tokenizer(sample(texts), config.model.vocab_size), folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rows.save(_cut(config, texts, tokenizer), kept)
    return rows.load(kept, recipe.length, recipe.batch_tokens, recipe.seed, recipe.question_weight)


def _texts(config: RunConfig, data: Path) -> Texts:
    files = config.files
    for name in [files.pairs, files.help, *files.novels.values()]:
        if name and not (data / name).is_file():
            raise ConfigError(f"{data / name}: there is no such file")
    return read_texts(data / files.pairs, {k: data / v for k, v in files.novels.items()},
                      data / files.help if files.help else None, files.held_out)


def _cut(config: RunConfig, texts: Texts, tokenizer: Tokenizer) -> dict[str, Kind]:
    r, recipe, weights = random.Random(config.recipe.seed), config.recipe, config.language_weights
    made = {
        "translate": dialogues.translations(texts.pairs, r),
        "help": dialogues.translations(texts.help, r),
        "chat": [*dialogues.small_talk(r, 20), *dialogues.unknowns(texts.pairs, r, 12_000)],
        "continue": dialogues.continuations(texts, r, 2),
    }
    cut = {name: Dialogues.cut(some, tokenizer, weights, recipe.length, recipe.batch_tokens, recipe.seed)
           for name, some in made.items()}
    pieces = [(language, part) for language, books in texts.novels.items() for book in books for part in parts(book)]
    ids = [np.array(e.ids, np.int32) for e in tokenizer.encode_batch([part for _, part in pieces])]
    long = [(t, weights[language]) for (language, _), t in zip(pieces, ids) if len(t) > recipe.length + 1]
    if long:
        cut["novels"] = Stream([t for t, _ in long], [w for _, w in long], recipe.length, recipe.batch_tokens,
                               recipe.seed)
    return {name: kind for name, kind in cut.items() if len(kind)}


def _checked(config: RunConfig, folder: Path) -> Iterator[Batch]:
    pairs = json.loads((folder / HELD_OUT).read_text())["pairs"][: CHECK_ROWS // 2]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made = dialogues.translations(pairs, random.Random(0))
    kind = Dialogues.cut(made, tokenizer, {"en": 1.0, "fr": 1.0}, config.recipe.length, config.recipe.batch_tokens, 0)
    yield from (kind.batch(i) for i in range(len(kind)))


def sample(texts: Texts) -> list[str]:
    """Equal parts of each language, of sentences and of novels."""
    pairs = random.Random(1).sample(texts.pairs, min(60_000, len(texts.pairs)))
    novels = [book[2000:32_000] for books in texts.novels.values() for book in books[:60]]
    forms = [" " + form for form in (*dialogues.TO_FRENCH[:2], *dialogues.TO_ENGLISH[:2]) for _ in range(2000)]
    return [" " + e for e, _ in pairs] + [" " + f for _, f in pairs] + forms + novels
