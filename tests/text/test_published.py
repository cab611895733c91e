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


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_sentencepiece(tmp_path, name):
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(DATA / name))
    mine = linked(tmp_path, name.replace("mistral_instruct_tokenizer_240323", "tokenizer"), name)
    assert (mine.vocab_size, mine.bos_id, mine.eos_id) == (theirs.vocab_size(), theirs.bos_id(), theirs.eos_id())
    for text in MORE:
        ids = theirs.encode(text, add_bos=True)
        assert mine.encode(text) == ids
        assert mine.decode(ids) == theirs.decode(ids) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{}, {
    "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False,
    "normalization_rule_name": "identity"}])
def test_trained_sentencepiece(tmp_path, kind, options):
    sentencepiece = pytest.importorskip("sentencepiece")
    options = {"vocab_size": 330 if options else 90, "hard_vocab_limit": False, "minloglevel": 2, **options}
    with open(tmp_path / "tokenizer.model", "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT * 4), model_writer=out, model_type=kind, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    mine = load_tokenizer(tmp_path)
    for text in MORE:
        assert mine.encode(text) == theirs.encode(text, add_bos=True), text


def test_broken_sentencepiece(tmp_path):
    good = (DATA / "tokenizer.model.v1").read_bytes()[:3000]
    for content in (b"", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x7f", b"\x0b", good[:1999], b"\x12\x02\x18\x07" + good):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ModelError, match=r"tokenizer\.model"):
            load_tokenizer(tmp_path)
