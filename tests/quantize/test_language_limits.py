"""Each language has its own limits: said in one flag, kept by the gate, written on the card."""
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from gramme.config import ConfigError  # noqa: E402
from gramme.quantize import session  # noqa: E402
from gramme.quantize.limits import Limits, read_limits  # noqa: E402

FR_EN = ("fr", "en")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("text, fr, en", [
    ("0.05", 0.05, 0.05), ("fr:0.03,en:0.02", 0.03, 0.02), ("en:0.02", 0.05, 0.02), ("0.1,fr:0.03", 0.03, 0.1),
    ("fr:0.03,0.1", 0.03, 0.1), ("inf,en:-1", float("inf"), -1), ("fr:1e-3", 0.001, 0.05)])
def test_one_number_is_for_all_and_a_named_one_for_its_language(text, fr, en):
    assert read_limits(text, "fr:7", FR_EN) == {"fr": Limits(fr, 7), "en": Limits(en, 0.04)}
    rise = read_limits("0.05", text.replace("0.05", "0.04"), FR_EN)
    assert [x.max_ppl_increase for x in rise.values()] == [0.04 if x == 0.05 else x for x in (fr, en)]


def test_nothing_said_is_the_default():
    assert read_limits("0.05", "0.04", FR_EN) == dict.fromkeys(FR_EN, Limits())


@pytest.mark.parametrize("text, words", [
    ("de:0.05", "no text is judged in 'de'; there are: fr, en"), ("fr:0.1,fr:0.2", "gives fr two limits"),
    ("0.1,0.2", "gives two limits for all"), ("fr:x", "must be a number"), ("fr:", "must be a number"),
    ("", "must be a number"), ("fr:nan", "must be a number"), ("nan", "must be a number"), ("fr", "must be a number"),
    ("fr:0.1,", "must be a number"), ("a\nb:1", "no text is judged in")])
@pytest.mark.parametrize("flag", ["--max-kl", "--max-ppl-increase"])
def test_what_cannot_be_is_one_line_that_names_the_flag(text, words, flag):
    texts = (text, "0.04") if flag == "--max-kl" else ("0.05", text)
    with pytest.raises(ConfigError, match=f"^{flag} ") as caught:
        read_limits(*texts, FR_EN)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_language_is_refused_before_any_work(quantise, tmp_path):
    code, said, _ = quantise("--max-kl", "fr:0.03,de:0.05")
    assert code == 2 and said.startswith("gramme: --max-kl ") and "'de'" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("limits", [["--max-kl", "fr:1e-9,en:9"], ["--max-ppl-increase", "9,fr:-0.9"]])
def test_only_french_fails(quantise, limits):
    code, said, out = quantise(*limits)
    assert code == 3 and not out.exists() and not out.with_name("out.new").exists()
    refused = [line for line in said.splitlines() if line.startswith("refused")]
    assert len(refused) == 1 and refused[0].startswith("refused, fr: ")
    assert f"at most {'1e-09 may be lost' if limits[0] == '--max-kl' else '-90 % are allowed'}" in refused[0]
    assert "[" in refused[0] and "To try: " in said


def test_a_model_that_is_worse_in_french_alone_passes_where_french_may_lose_more(quantise, monkeypatch):
    judge = session.judge

    def french_suffers(*args):
        losses = judge(*args)
        return losses | {"fr": replace(losses["fr"], kl=replace(losses["fr"].kl, high=0.5))}

    monkeypatch.setattr(session, "judge", french_suffers)
    code, said, _ = quantise("--max-kl", "0.4")
    assert code == 3 and "refused, fr: mean KL" in said and "refused, en" not in said
    code, said, out = quantise("--max-kl", "0.4,fr:0.6")
    assert code == 0, said
    card = " ".join((out / "README.md").read_text().split())
    assert "in fr a mean KL of 0.6 nats and 900 % of perplexity; in en a mean KL of 0.4 nats" in card


def test_the_card_says_one_limit_once(quantise):
    card = " ".join((quantise()[2] / "README.md").read_text().split())
    assert "The gate was a mean KL of 9 nats and 900 % of perplexity, for the upper end of the interval, in" in card
