"""Laws of the measures: chrF agrees with a case worked by hand, answers do not depend on their batch."""
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from gramme.config import ModelConfig  # noqa: E402
from gramme.train.evaluate import answers, bits_per_byte, chrf  # noqa: E402
from gramme.train.tokenizer import train_tokenizer  # noqa: E402
from gramme.train.trainer import new_decoder  # noqa: E402

TOKENIZER = train_tokenizer(["the sea was calm", "la mer était calme"] * 3, 270)
M = ModelConfig(family="mistral", vocab_size=TOKENIZER.get_vocab_size(), width=16, layers=1, heads=2, kv_heads=1,
                head_dim=8, ff_width=24, norm_eps=1e-5, max_positions=64, tied_embeddings=True)


def test_chrf_of_equal_and_of_disjoint_texts():
    assert chrf(["la mer calme"], ["la mer  calme"]) == pytest.approx(100)
    assert chrf(["xxxxxxxx"], ["la mer calme"]) == 0


def test_chrf_worked_by_hand():
    # "abc" against "abd": 1-grams 2 of 3 and 3, 2-grams 1 of 2 and 2, 3-grams 0: (2/3 + 1/2 + 0) / 3
    assert chrf(["abc"], ["abd"], order=3) == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_chrf_weighs_recall_twice():
    assert chrf(["ab"], ["abab"], order=1) == pytest.approx(100 * 5 * 2 / (2 + 4 * 4))


def test_an_answer_does_not_depend_on_its_batch():
    decoder, questions = new_decoder(M, 2), ["the sea", "la mer", "sea the", "calme", "was"]
    together = answers(decoder, TOKENIZER, questions, 8)
    assert together == [answers(decoder, TOKENIZER, [q], 8)[0] for q in questions]


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary():
    decoder, text = new_decoder(M, 0), "la mer était calme " * 40
    with torch.no_grad():
        decoder.norm.zero_()
    rows = torch.tensor(TOKENIZER.encode(text, add_special_tokens=False).ids)
    rows = rows[: len(rows) // 16 * 16].view(-1, 16)[:, 1:]
    expected = math.log2(M.vocab_size) * rows.numel() / len(TOKENIZER.decode(rows.flatten().tolist()).encode())
    assert bits_per_byte(decoder, TOKENIZER, text, 16) == pytest.approx(expected, rel=1e-5)
