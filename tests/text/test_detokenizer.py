"""Any tokens, cut anywhere: what is fed out adds up to `decode`, holds no half character, and ends at a stop string."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gramme.text.detokenizer import Detokenizer
from gramme.text.tokenizer import load_tokenizer


def run(tokenizer, ids, cuts, **options):
    d = Detokenizer(tokenizer, **options)
    ends = sorted({c % (len(ids) + 1) for c in cuts} | {len(ids)})
    out = [d.feed(ids[a:b]) for a, b in zip([0, *ends], ends)]
    return d, [*out, d.finish()]


CUTS = st.lists(st.integers(0, 50), max_size=12)
STOPS = st.lists(st.text("ab é", min_size=1, max_size=4), max_size=3)
IDS = st.lists(st.integers(0, 10_000), max_size=40)


@pytest.mark.parametrize("kind", ["llama3", "llama2"])
@pytest.mark.parametrize("skip", [True, False])
def test_adds_up(directories, kind, skip):
    tokenizer = load_tokenizer(directories[kind])

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(IDS, CUTS)
    def law(ids, cuts):
        ids = [i % tokenizer.vocab_size for i in ids]
        _, out = run(tokenizer, ids, cuts, skip_special_tokens=skip)
        assert "".join(out) == tokenizer.decode(ids, skip_special_tokens=skip)

    law()


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_stops(directories, kind):
    tokenizer = load_tokenizer(directories[kind])

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.text("ab é🙂", max_size=30), CUTS, STOPS, st.booleans())
    def law(text, cuts, stops, include):
        ids = tokenizer.encode(text, add_special_tokens=False)
        text = tokenizer.decode(ids)
        d, out = run(tokenizer, ids, cuts, stop=stops, include_stop=include)
        assert all("\ufffd" not in part for part in out)
        found = min(((text.find(s) + len(s), text.find(s), s) for s in stops if s in text), default=None)
        expected = text if found is None else text[: found[0] if include else found[1]]
        assert (d.stopped, "".join(out)) == (found and found[2], expected)

    law()


def test_first_complete_match_wins_over_any_cut(directories):
    tokenizer = load_tokenizer(directories["gpt2"])
    ids = tokenizer.encode("one two three four")
    for cuts in ([], range(len(ids))):
        d, out = run(tokenizer, ids, cuts, stop=["three", "two th", "two"])
        assert d.stopped == "two"
        assert "".join(out) == "one "


def test_half_a_character_waits_and_ends_as_replacement(directories):
    tokenizer = load_tokenizer(directories["llama2"])
    first = [tokenizer.encode("🙂")[k] for k in (-4, -3)]
    d = Detokenizer(tokenizer)
    assert d.feed(first) == "" and d.finish() == "\ufffd"
