"""Laws of the training texts: nothing held out is trained on, what is read is clean and stands there once."""
import io
import lzma
import random
import tarfile
import zipfile

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from gramme.train import dialogues
from gramme.train.dialogues import ABOUT, FACTS, FILLERS, UNKNOWN, Dialogue
from gramme.train.texts import Texts, read_texts, split_pairs
from gramme.train.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["the sea was calm and it's late", "l'homme qu'elle aime était d'accord"] * 9, 300)


def test_a_component_of_translations_lies_on_one_side():
    pairs = [(f"e{n // 2}", f"f{(n + 1) // 2}.{n // 4}") for n in range(60)]
    train, test = split_pairs(pairs, 5, seed=1)
    sides = [{("en", e) for e, _ in side} | {("fr", f) for _, f in side} for side in (train, test)]
    assert len(test) == 5 and not sides[0] & sides[1]


def test_a_large_component_is_trained_on():
    pairs = [("hub", f"f{n}") for n in range(6)] + [("lone", "seule")]
    assert split_pairs(pairs, 1, seed=0) == ([("hub", f"f{n}") for n in range(6)], [("lone", "seule")])


@pytest.mark.parametrize("text, kept", [
    ("L'été, qu'est-ce que c'est ?", None), ("We'll see: 2024 «œuvre»\n\n  — Oui", None), ("日本 🙂 \x00", None),
    ("C’est “ça”…\u202f!", "C'est \"ça\"... !"), ("e\u0301te\u0301", "été"),
])
def test_any_text_survives_the_tokenizer_but_for_typography(text, kept):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == (kept or text)


def archive(path, files):
    with tarfile.open(path, "w:xz") as tar:
        for name, text in files:
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))


def test_texts_are_cleaned_and_only_novels_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as z:
        z.writestr("fra.txt", "Go.\tVa\u202f!\nGo.\tVa !\nIt’s me.\tC’est  moi.\n")
    notice = "The transcribers of this edition ask for your attention.\n"
    archive(tmp_path / "novels.tar.xz", [("README.md", "r" * 20_000), ("metadata.tsv", "m" * 20_000),
                                         *((f"{n}.txt", notice + f"Novel {n}. " * 2000) for n in range(3))])
    with lzma.open(tmp_path / "help.tsv.xz", "wt") as f:
        f.write("a\tb\tOpen the file again.\tOuvrez le fichier.\na\tc\tOpen the file again.\tOuvrir le fichier.\n"
                "a\td\tSUM(A1:B2) = x\tSOMME(A1:B2) = x\na\te\tThe same words here\tThe same words here\n")
    texts = read_texts(tmp_path / "pairs.zip", {"en": tmp_path / "novels.tar.xz"}, tmp_path / "help.tsv.xz", held_out=1)
    assert sorted(texts.pairs + texts.held_out_pairs) == [("Go.", "Va !"), ("It's me.", "C'est moi.")]
    books = texts.novels["en"] + texts.held_out_novels["en"]
    assert [b.strip()[:7] for b in books] == ["The tra", "Novel 1", "Novel 2"]  # the notice stands in the first alone
    assert texts.help == [("Open the file again.", "Ouvrez le fichier.")]


def test_what_is_no_request_gets_the_honest_answer_in_its_language():
    pairs = [(f"He saw {n} cats.", f"Il a vu {n} chats.") for n in range(50)]
    pairs += [("You are late.", "Tu es en retard.")] * 50
    made = list(dialogues.unknowns(pairs, random.Random(1), 400))
    assert all(d.answer == UNKNOWN[d.language] for d in made)
    assert {d.language for d in made} == {"en", "fr"}
    assert not any("late" in d.question or "retard" in d.question for d in made)  # "you" may ask about the model
    assert sum(d.question.startswith(("He saw", "he saw", "Il a vu", "il a vu")) for d in made) == 200


def test_every_form_of_question_can_be_filled():
    r = random.Random(0)
    for language, forms in FACTS.items():
        made = {dialogues._fact(r, language) for _ in range(40 * len(forms))}
        assert len(made) > 10 * len(forms) and not any("{" in m for m in made)
        assert set(FILLERS[language]) == {"place", "work", "person", "thing"}


def test_small_talk_asks_each_question_and_no_question_has_two_answers():
    made = list(dialogues.small_talk(random.Random(0), 1))
    assert len(made) == sum(len(questions) for groups in ABOUT.values() for _, questions in groups)
    asked = [q for groups in ABOUT.values() for _, questions in groups for q in questions]
    assert len(asked) == len(set(asked))


def test_continuations_begin_and_end_where_a_sentence_does():
    r = np.random.default_rng(0)
    book = " ".join(f"Sentence {n} of {'very ' * r.integers(1, 9)}many words. Then a short one!" for n in range(600))
    made = list(dialogues.continuations(Texts([], [], {"en": [book]}, {}, []), random.Random(1), 3))
    assert len(made) > 5
    for d in made:
        form = next(f for f in sorted(dialogues.CONTINUE, key=len, reverse=True) if d.question.startswith(f[:-2]))
        asked = d.question[len(form) - 2 :]
        assert asked.startswith(("Sentence", "Then")) and d.answer.endswith((".", "!"))
        assert f"{asked} {d.answer}" in book


def test_translations_go_both_ways_in_several_forms():
    pairs = [(f"I see {n} cats.", f"Je vois {n} chats.") for n in range(300)]
    made = list(dialogues.translations(pairs, random.Random(0)))
    assert [d.answer for d in made] == [s for e, f in pairs for s in (f, e)]
    assert len({d.question.split(":")[0] for d in made}) > 8
    assert made[0] == Dialogue(made[0].question, "Je vois 0 chats.", "fr") and "see 0 cats" in made[0].question
