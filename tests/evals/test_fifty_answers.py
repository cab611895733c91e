"""Laws of the measures of what a model says: intervals hold, repetition is counted, honest answers are told apart."""
import json
from dataclasses import asdict

import numpy as np
import pytest

from gramme.config import ConfigError
from gramme.evals import prompts, translate
from gramme.evals.bias import bias, read_crows, wilson
from gramme.evals.prompts import HONEST, PROMPTS, repetition
from gramme.evals.translate import PAIRS, read_pairs
from gramme.request import SamplingParams


class Parrot:
    """Answers every question with what stands after the colon; recommends warmth, and a penalty."""

    def default_params(self, **given):
        return SamplingParams(**{"temperature": 0.7, "repetition_penalty": 1.1} | given)

    def generate(self, asked, params):
        assert (params.temperature, params.repetition_penalty) == (0, 1.1)
        return [Reply(p["messages"][0]["content"].split(": ", 1)[-1]) for p in asked]


class Reply:
    def __init__(self, text):
        self.outputs = [type("Output", (), {"text": f" {text} "})]


def test_a_parrot_translates_a_language_into_itself_perfectly():
    pytest.importorskip("sacrebleu")
    same = [(s, s) for s in ("The cat sleeps on the old chair.", "We will never see each other again.")] * 60
    for direction in translate.ASK:
        r = translate.translate(Parrot(), same, direction)
        assert (r.chrf.value, r.bleu.value, r.pairs) == (pytest.approx(100), pytest.approx(100), 120)
        assert json.loads(json.dumps(asdict(r)))["pairs"] == 120
    other = [(f"{'a' * (i % 7 + 3)} b c d e", "xyz uvw rst") for i in range(60)]
    r = translate.translate(Parrot(), other, "en-fr")
    assert r.chrf.value < 5 and r.chrf.low <= r.chrf.value <= r.chrf.high


def test_the_shipped_pairs_are_a_thousand_and_no_sentence_is_in_two():
    pairs = read_pairs(PAIRS)
    assert len(pairs) == 1000 and len({e for e, _ in pairs}) == len({f for _, f in pairs}) == 1000


@pytest.mark.parametrize("text", ["", "one side only\n", "a\tb\n\tc\n", "\xff\xfe"])
def test_wrong_pairs_are_refused_by_line(text, tmp_path):
    (tmp_path / "pairs.tsv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"pairs\.tsv"):
        read_pairs(tmp_path / "pairs.tsv")


def test_fifty_prompts_twenty_of_them_questions_of_fact():
    kinds = [p["kind"] for p in json.loads(PROMPTS.read_text())]
    assert len(kinds) == 50 and kinds.count("fact") == 20
    r = prompts.ask(Parrot())
    assert r.facts == 20 and r.invented == 20 and len(r.rows) == 50  # a parrot never says that it does not know


def test_not_knowing_is_recognised_and_nothing_else():
    assert all(HONEST.search(s) for s in ("I do not know facts.", "I don't know.", "Je ne connais pas les faits.",
                                          "Je ne sais pas."))
    assert not any(HONEST.search(s) for s in ("It is Oslo.", "I know it.", "Je connais la ville.", "C'est Hanoï."))


def test_the_prompts_are_not_among_the_questions_that_are_taught():
    pytest.importorskip("tokenizers")
    from gramme.train.dialogues import ABOUT, FILLERS

    asked = {p["prompt"] for p in json.loads(PROMPTS.read_text())}
    assert not asked & {q for groups in ABOUT.values() for _, questions in groups for q in questions}
    kinds = ("place", "work", "person")
    names = [name for fill in FILLERS.values() for kind in kinds for name in fill[kind].split("|")]
    facts = [p["prompt"] for p in json.loads(PROMPTS.read_text()) if p["kind"] == "fact"]
    assert not [(name, fact) for name in names for fact in facts if f" {name} " in fact.replace("?", " ")]


def test_repetition_counts_runs_of_four_words():
    assert repetition(["a b c d e f g h"]) == 0 and repetition(["a b c"]) == 0
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repetition(["a b c d", "a b c d"]) == 0  # another text's runs are no repetition


def test_wilsons_interval_against_its_table():
    # p = 0.5, n = 10: 0.2366 to 0.7634
    f = wilson([True] * 5 + [False] * 5)
    assert (f.value, f.low, f.high) == (0.5, pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


def test_bias_counts_pairs_by_their_probability(tmp_path, monkeypatch):
    (tmp_path / "crows.csv").write_text("\tsent_more\tsent_less\tstereo_antistereo\tbias_type\n"
                                        "0\taa\tbbbb\tstereo\tage\n1\tccc\tdd\tantistereo\tage\n2\te\tff\tstereo\tgender\n")
    rows = read_crows(tmp_path / "crows.csv")
    model = type("Model", (), {"config": type("C", (), {"bos_token_id": 0}), "tokenizer": type("T", (), {
        "encode": staticmethod(lambda text, add_special_tokens: list(text.encode()))})})
    found = []

    def nats(model, windows, progress):
        found.extend(w.tokens for w in windows)
        return type("Scores", (), {"nats": np.concatenate([np.ones(len(w.tokens) - 1) for w in windows])})

    monkeypatch.setattr("gramme.evals.bias.score", nats)
    r = bias(model, rows)  # the shorter sentence is the likelier one
    assert (r.pairs, r.stereotyped.value) == (3, pytest.approx(2 / 3))
    assert {k: f.value for k, f in r.by_type.items()} == {"age": 0.5, "gender": 1.0}
    assert all(tokens[0] == 0 for tokens in found)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "sent_more,sent_less,bias_type\n"])
def test_a_wrong_crows_file_is_refused(text, tmp_path):
    (tmp_path / "crows.csv").write_text(text)
    with pytest.raises(ConfigError, match="sent_more"):
        read_crows(tmp_path / "crows.csv")
