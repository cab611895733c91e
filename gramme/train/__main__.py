"""`python -m gramme.train RECIPE.json DATA RUN`: trains a model on the texts in DATA, in the folder RUN."""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from gramme.config import ModelConfig
from gramme.train.data import Rows, read_texts
from gramme.train.export import export
from gramme.train.tokenizer import save_tokenizer, train_tokenizer
from gramme.train.trainer import Recipe, new_decoder, train


def main(recipe_file: str, data: str, run: str) -> None:
    raw, folder = json.loads(Path(recipe_file).read_text()), Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    m, recipe = ModelConfig(**raw["model"]), Recipe(**raw["recipe"])
    texts = read_texts(Path(data) / raw["pairs"], {k: Path(data) / v for k, v in raw["novels"].items()})
    (folder / "held_out_pairs.json").write_text(json.dumps(texts.held_out_pairs, ensure_ascii=False))
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(_sample(texts), m.vocab_size), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = Rows(texts, tokenizer, recipe.length, recipe.batch_tokens, recipe.seed)
    decoder = new_decoder(m, recipe.seed)
    train(decoder, lambda step: rows.batch(step, recipe.novel_share), recipe, folder)
    export(decoder, m, folder, folder / "model")


def _sample(texts) -> list[str]:
    """Equal parts of each language, of sentences and of novels."""
    pairs = texts.pairs[:60_000]
    novels = [book[2000:102_000] for books in texts.novels.values() for book in books[:60]]
    return [e for e, _ in pairs] + [f for _, f in pairs] + novels


if __name__ == "__main__":
    main(*sys.argv[1:])
