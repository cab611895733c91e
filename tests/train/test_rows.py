"""Laws of the rows: a batch depends on its number alone, a pass shows each dialogue once, only answers are learnt."""
import numpy as np
import pytest

pytest.importorskip("tokenizers")

from gramme.train.dialogues import Dialogue
from gramme.train.rows import Dialogues, Mix, Stream, chat_tokens, load, save
from gramme.train.tokenizer import train_tokenizer

MADE = [Dialogue(f"Translate to French: I see {n} cats.", f"Je vois {n} chats.", ("fr", "en")[n % 2])
        for n in range(300)]
TOKENIZER = train_tokenizer([text for d in MADE for text in d[:2]], 400)
CHATS = Dialogues.cut(MADE, TOKENIZER, {"en": 1.0, "fr": 0.5}, 64, 256, 5)
STREAM = Stream([np.arange(100, dtype=np.int32), np.arange(1000, 1500, dtype=np.int32)], [1.0, 2.0], 32, 256, 5)


def test_special_tokens_lead_the_vocabulary():
    tokens, head = chat_tokens(TOKENIZER, "Translate to French: I see 1 cats.", "Je vois 1 chats.")
    assert [TOKENIZER.token_to_id(t) for t in ("<s>", "</s>", "[INST]", "[/INST]")] == [0, 1, 2, 3]
    assert (tokens[0], tokens[1], tokens[head - 1], tokens[-1]) == (0, 2, 3, 1)


def test_the_rows_are_what_the_chat_template_renders():
    jinja2 = pytest.importorskip("jinja2")
    from gramme.train.tokenizer import TEMPLATE

    text = jinja2.Environment().from_string(TEMPLATE).render(bos_token="<s>", eos_token="</s>", messages=[
        {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}])
    assert TOKENIZER.encode(text, add_special_tokens=False).ids == chat_tokens(TOKENIZER, "Q?", "A.")[0]


def test_the_template_shows_the_last_question_alone():
    jinja2 = pytest.importorskip("jinja2")
    from gramme.train.tokenizer import TEMPLATE

    render = jinja2.Environment().from_string(TEMPLATE).render
    turn = lambda role, text: {"role": role, "content": text}
    asked = [turn("user", "Q?")]
    before = [turn("system", "S."), turn("user", "old?"), turn("assistant", "old.")]
    for after in ([], [turn("assistant", "A.")]):
        alone = render(bos_token="<s>", eos_token="</s>", messages=asked + after)
        assert render(bos_token="<s>", eos_token="</s>", messages=before + asked + after) == alone


@pytest.mark.parametrize("turn", [0, 3])
def test_a_pass_shows_every_dialogue_once_in_an_order_of_its_own(turn):
    batches = [CHATS.batch(i) for i in range(turn * len(CHATS), (turn + 1) * len(CHATS))]
    rows = [tuple(row) for tokens, _ in batches for row in tokens.tolist()]
    expected = [tuple(chat_tokens(TOKENIZER, d.question, d.answer)[0]) for d in MADE]
    assert sorted(rows) == sorted(expected)
    other = [tuple(row) for i in range(len(CHATS)) for row in CHATS.batch((turn + 1) * len(CHATS) + i)[0].tolist()]
    assert rows != other and sorted(rows) == sorted(other)


def test_a_micro_batch_has_about_its_tokens():
    assert all(128 <= CHATS.batch(i)[0].size <= 384 for i in range(len(CHATS)))


def test_only_the_answer_is_learnt_with_its_languages_weight():
    for i in range(len(CHATS)):
        tokens, weights = CHATS.batch(i)
        for row, w in zip(tokens, weights, strict=True):
            head = int(np.argmax(row == 3))  # [/INST], which predicts the answer's first token
            assert (w[:head] == 0).all() and set(w[head:].tolist()) <= {0.5, 1.0} and len(set(w[head:].tolist())) == 1
    counts = [w for i in range(len(CHATS)) for w in CHATS.batch(i)[1].max(1).tolist()]
    assert counts.count(0.5) == counts.count(1.0) == 150


def test_a_piece_lies_within_one_text_and_has_its_weight():
    seen = set()
    for i in range(40):
        tokens, weights = STREAM.batch(i)
        assert (np.diff(tokens, axis=1) == 1).all() and tokens.shape == (8, 33)
        np.testing.assert_array_equal(weights[:, 0], np.where(tokens[:, 0] < 1000, 1.0, 2.0))
        seen |= set(tokens[:, 0].tolist())
    assert len(seen) > 100


def test_a_mixture_meets_its_shares_and_depends_on_the_number_alone():
    kinds = {"chat": CHATS, "novels": STREAM}
    one, two = (Mix(kinds, {"chat": 3, "novels": 1}, seed=2) for _ in range(2))
    shapes = [one(i)[0].shape[1] == 33 for i in range(Mix.CYCLE)]
    assert sum(shapes) == Mix.CYCLE // 4 and not all(shapes[: Mix.CYCLE // 4])
    for i in (2500, 3, 999):
        for a, b in zip(one(i), two(i), strict=True):
            np.testing.assert_array_equal(a, b)
    drawn = {one(i)[0].tobytes() for i in range(Mix.CYCLE) if one(i)[0].shape[1] == 33}
    assert len(drawn) == Mix.CYCLE // 4  # no piece of the stream comes twice


def test_a_question_weighs_a_part_of_its_answer(tmp_path):
    save({"chat": CHATS}, tmp_path / "rows.npz")
    asked = load(tmp_path / "rows.npz", 32, 256, 5, 0.25)["chat"]
    for i in range(len(CHATS)):
        (tokens, answers), (same, both) = CHATS.batch(i), asked.batch(i)
        np.testing.assert_array_equal(tokens, same)
        whole = answers.max(1, keepdims=True)  # the language's weight
        np.testing.assert_array_equal(both, np.where(answers > 0, answers, np.float32(0.25) * whole))
        assert (answers == 0).any()


def test_rows_survive_being_kept(tmp_path):
    save({"chat": CHATS, "novels": STREAM}, tmp_path / "rows.npz")
    kept = load(tmp_path / "rows.npz", 32, 256, 5, 0.0)
    for name, kind in {"chat": CHATS, "novels": STREAM}.items():
        for i in (0, 7):
            for a, b in zip(kind.batch(i), kept[name].batch(i), strict=True):
                np.testing.assert_array_equal(a, b)
