"""Which vocabulary suits the embedded model: small models with 2,048 to 16,384 tokens, each shown the same text.

    python bench/vocabulary.py --data FOLDER [--run FOLDER]      needs torch, matplotlib; goes on where it was stopped

All have the same layers and see the same number of characters; what differs is the tokenizer, and with it the embedding
and how many tokens those characters are. Judged in bits per byte on the held-out texts that come with gramme, which
compares models with different tokens, and by fertility, tokens a word, on held-out pairs that say the same.
Writes bench/results/vocabulary.json and vocabulary.png.
"""
import argparse
import json
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tokenizers import Tokenizer

from gramme import __version__
from gramme.config import EngineConfig
from gramme.evals import texts
from gramme.evals.scores import score, windows
from gramme.evals.subject import load
from gramme.evals.summary import quality
from gramme.train.run import run, sample
from gramme.train.texts import read_texts
from gramme.train.tokenizer import save_tokenizer, train_tokenizer

RESULTS = Path(__file__).parent / "results"
SIZES = (2048, 4096, 8192, 16384)
BATCH_TOKENS = 4096
MB_SEEN = 4.5  # of text, by each model
WINDOW_BYTES = 700  # of text that are run together: a window has fewer tokens where tokens are longer
PAIRS = "tatoeba-fra-eng/fra-eng.zip"
NOVELS = {"en": "eltec-eng/eltec-eng_text.tar.xz", "fr": "eltec-fra/eltec-fra_plain1.tar.xz"}
RECIPE = f"""
[files]
pairs = "{PAIRS}"
novels.en = "{NOVELS['en']}"
novels.fr = "{NOVELS['fr']}"
""" + """

[mix]
translate = 0.5
novels = 0.5

[model]
family = "mistral"
vocab_size = {vocab_size}
width = 192
layers = 4
heads = 4
kv_heads = 2
head_dim = 48
ff_width = 512
norm_eps = 1e-5
max_positions = 512
tied_embeddings = true
bos_token_id = 0
eos_token_ids = [1]

[recipe]
steps = {steps}
batch_tokens = 2048
micro_batches = 2
workers = {workers}
bf16 = true
learning_rate = 0.003
muon_rate = 0.02
weight_decay = 0.02
warmup_steps = 40
decay_steps = {decay_steps}
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--run", type=Path, default=Path("runs/vocabulary"))
    p.add_argument("--workers", type=int, default=1)
    a = p.parse_args()
    for size in SIZES:
        one(a, size)
    rows = [json.loads((a.run / str(size) / "found.json").read_text()) for size in SIZES]
    record = {"command": "python bench/vocabulary.py --data FOLDER", "gramme": __version__, "mb_seen": MB_SEEN,
              "machine": f"{platform.machine()}, {platform.system()}", "rows": rows}
    (RESULTS / "vocabulary.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, RESULTS / "vocabulary.png")


def one(a: argparse.Namespace, size: int) -> None:
    """Trains and judges one model, unless that was done."""
    folder = a.run / str(size)
    if (folder / "found.json").exists():
        return
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    bytes_a_token = _tokenizer(a.data, size, folder)
    steps = round(MB_SEEN * 1e6 / bytes_a_token / BATCH_TOKENS)
    recipe = RECIPE.format(vocab_size=size, steps=steps, decay_steps=steps // 2, workers=a.workers)
    (folder / "recipe.toml").write_text(recipe)
    model = run(folder / "recipe.toml", a.data, folder)
    found = {"vocab_size": size, "steps": steps, "tokens": steps * BATCH_TOKENS, "bytes_a_token": bytes_a_token,
             "embedding_parameters": size * 192, "fertility": fertility(folder),
             "losses": {k: asdict(v) for k, v in judged(model, bytes_a_token).items()},
             "seconds": round(time.monotonic() - began)}
    (folder / "found.json").write_text(json.dumps(found))
    print(json.dumps(found), flush=True)


def _tokenizer(data: Path, size: int, folder: Path) -> float:
    """Trains it, into `folder`; bytes of a token in what it was trained on."""
    some = sample(read_texts(data / PAIRS, {language: data / name for language, name in NOVELS.items()}))
    tokenizer = train_tokenizer(some, size)
    save_tokenizer(tokenizer, folder)
    return sum(len(t.encode()) for t in some) / sum(len(e.ids) for e in tokenizer.encode_batch(some))


def judged(model: Path, bytes_a_token: float) -> dict[str, object]:
    window = round(WINDOW_BYTES / bytes_a_token)
    subject = load(EngineConfig(model=str(model)), window)
    return {language: quality(score(subject, windows(subject.tokenizer.encode(text), window, window)))
            for language, text in texts.shipped("held-out").items()}


def fertility(folder: Path) -> dict[str, float]:
    """Tokens a word of each side of the held-out pairs, and the French tokens for one English token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = json.loads((folder / "held_out.json").read_text())["pairs"]
    tokens, words = [], []
    for side in (0, 1):
        lines = [pair[side] for pair in pairs]
        tokens.append(sum(len(e.ids) for e in tokenizer.encode_batch(lines)))
        words.append(sum(len(re.findall(r"\w+", line)) for line in lines))
    return {"en": tokens[0] / words[0], "fr": tokens[1] / words[1], "fr_tokens_for_en": tokens[1] / tokens[0]}


def draw(rows: list[dict], out: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), dpi=90, layout="constrained")
    for language, name in (("fr", "French"), ("en", "English")):
        values = [r["losses"][language]["bits_per_byte"] for r in rows]
        axes.errorbar([r["vocab_size"] for r in rows], [v["value"] for v in values],
                      [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]],
                      marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([r["vocab_size"] for r in rows], [f"{r['vocab_size']:,}" for r in rows])
    axes.set(xlabel="tokens in the vocabulary", ylabel="bits per byte, held out")
    axes.legend(frameon=False)
    figure.savefig(out)
    plt.close(figure)


if __name__ == "__main__":
    main()
