"""Laws of the training texts: nothing held out is trained on, batches depend on the step alone, text survives."""
import io
import tarfile
import zipfile

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from gramme.train.data import Rows, Texts, chat_tokens, read_texts, split_pairs
from gramme.train.tokenizer import train_tokenizer

PAIRS = [(f"I see {n} cats.", f"Je vois {n} chats.") for n in range(300)]


def novel(words, seed):
    r = np.random.default_rng(seed)
    return " ".join(r.choice(words.split(), 4000))


TEXTS = Texts(PAIRS, [], {"en": [novel("the sea was calm and it's late", 0)],
                          "fr": [novel("l'homme qu'elle aime était d'accord", 1)]}, {})
TOKENIZER = train_tokenizer([s for pair in PAIRS for s in pair] + [b for v in TEXTS.novels.values() for b in v], 400)


def test_a_component_of_translations_lies_on_one_side():
    pairs = [(f"e{n // 2}", f"f{(n + 1) // 2}.{n // 4}") for n in range(60)]
    train, test = split_pairs(pairs, 5, seed=1)
    sides = [{("en", e) for e, _ in side} | {("fr", f) for _, f in side} for side in (train, test)]
    assert len(test) == 5 and not sides[0] & sides[1]


def test_a_large_component_is_trained_on():
    pairs = [("hub", f"f{n}") for n in range(6)] + [("lone", "seule")]
    assert split_pairs(pairs, 1, seed=0) == ([("hub", f"f{n}") for n in range(6)], [("lone", "seule")])


@pytest.mark.parametrize("text", [
    "L'été, qu'est-ce que c'est ?", "We'll see: 2024 «œuvre»\n\n  — Oui…", "日本 🙂 \x00",
])
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == text


def test_special_tokens_lead_the_vocabulary():
    tokens, head = chat_tokens(TOKENIZER, "Translate to French: I see 1 cats.", "Je vois 1 chats.")
    assert [TOKENIZER.token_to_id(t) for t in ("<s>", "</s>", "[INST]", "[/INST]")] == [0, 1, 2, 3]
    assert (tokens[0], tokens[1], tokens[head - 1], tokens[-1]) == (0, 2, 3, 1)


def test_a_batch_depends_on_the_step_alone():
    one, two = (Rows(TEXTS, TOKENIZER, 64, 512, seed=5) for _ in range(2))
    for step in (0, 9, 3):
        for a, b in zip(one.batch(step, 0.5), two.batch(step, 0.5), strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(one.batch(s, 0.5)[0].shape != one.batch(s + 1, 0.5)[0].shape for s in range(9))


def test_rows_weigh_the_question_less_than_the_answer():
    tokens, weights = Rows(TEXTS, TOKENIZER, 64, 512, seed=5).batch(0, 0.0)
    heads = np.argmax(tokens == 3, axis=1)  # [/INST]
    for row, head in zip(weights, heads, strict=True):
        assert (row[:head] == np.float32(0.1)).all() and (row[head:] == 1).all()


def test_texts_are_cleaned_and_only_novels_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as z:
        z.writestr("fra.txt", "Go.\tVa\u202f!\nGo.\tVa !\nIt’s me.\tC’est  moi.\n")
    with tarfile.open(tmp_path / "novels.tar.xz", "w:xz") as tar:
        for name, text in [("README.md", "r" * 20_000), ("metadata.tsv", "m" * 20_000),
                           *((f"{n}.txt", f"Novel {n}. " * 2000) for n in range(3))]:
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    texts = read_texts(tmp_path / "pairs.zip", {"en": tmp_path / "novels.tar.xz"}, held_out=1)
    assert sorted(texts.pairs + texts.held_out_pairs) == [("Go.", "Va !"), ("It's me.", "C'est moi.")]
    assert [b[:7] for b in texts.novels["en"] + texts.held_out_novels["en"]] == ["Novel 0", "Novel 1", "Novel 2"]
