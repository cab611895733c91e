"""mistral_common's packaged files: the ids are those of mistral_common and of the sentencepiece library."""
from pathlib import Path

import pytest
from tiny import SAMPLES, TEXT

from gramme.config import ModelError
from gramme.text.tokenizer import load_tokenizer

mistral_common = pytest.importorskip("mistral_common")
DATA = Path(mistral_common.__file__).parent / "data"
MORE = [*SAMPLES, *TEXT[:5], "a\u00a0b\u3000c", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "l’école d’Émile", "\ufeffx", "ﬁn ½ ²"]


def linked(directory, name, target):
    (directory / name).symlink_to(DATA / target)
    return load_tokenizer(directory)


def test_tekken(tmp_path):
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    theirs = tekken.Tekkenizer.from_file(DATA / "tekken_240911.json")
    mine = linked(tmp_path, "tekken.json", "tekken_240911.json")
    assert (mine.vocab_size, mine.bos_id, mine.eos_id) == (theirs.n_words, theirs.bos_id, theirs.eos_id)
    for text in MORE:
        ids = theirs.encode(text, bos=True, eos=False)
        assert mine.encode(text) == ids
        assert mine.decode(ids) == text
    assert [mine.token_bytes(i) for i in range(1000, 9000)] == [theirs.id_to_byte_piece(i) for i in range(1000, 9000)]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": 3}', "[" * 100_000,
    '{"config": {"default_vocab_size": 9999999999999, "default_num_special_tokens": 1, "pattern": "."}, "vocab": []}',
    '{"config": {"default_vocab_size": 2, "default_num_special_tokens": 1, "pattern": "("}, '
    '"vocab": [{"rank": 0, "token_bytes": "YQ=="}]}',
    '{"config": {"default_vocab_size": 2, "default_num_special_tokens": 1, "pattern": "."}, '
    '"vocab": [{"rank": 7, "token_bytes": "AA=="}]}'])
def test_broken_tekken(tmp_path, content):
    (tmp_path / "tekken.json").write_text(content)
    with pytest.raises(ModelError, match=r"tekken\.json"):
        load_tokenizer(tmp_path)
