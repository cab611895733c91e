"""Loading says what is wrong with a file; bytes of tokens add up to the text."""
import json

import pytest
from tiny import CONTROL, SAMPLES, byte_level

from gramme.config import ModelError
from gramme.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("text", SAMPLES)
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    normal = tokenizer._inner.normalizer
    expected = text if normal is None or tokenizer.strips_first_space else normal.normalize_str(text)
    if tokenizer._inner.pre_tokenizer is not None and tokenizer.strips_first_space:
        expected = text.removeprefix(" ")  # Metaspace adds no space before one, yet decoding drops one
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode(ids) == tokenizer._inner.decode(ids)


def test_control_tokens(tokenizer):
    assert set(CONTROL) <= set(tokenizer.added)
    assert tokenizer.bos_id == tokenizer.added["<s>"] and tokenizer.eos_id == tokenizer.added["</s>"]
    assert tokenizer.added["<tool>"] not in tokenizer.special_ids
    ids = tokenizer.encode("<|begin|>a<tool>", add_special_tokens=False)
    assert ids[0] == tokenizer.added["<|begin|>"] and ids[-1] == tokenizer.added["<tool>"]
    assert tokenizer.decode(ids).endswith("a<tool>") and "begin" in tokenizer.decode(ids, skip_special_tokens=False)
    assert tokenizer.vocab_size == max(tokenizer.added.values()) + 1


def test_plain_text_has_no_control_token(tokenizer):
    ids = tokenizer.encode_plain("a <|im_end|><s> b")
    assert not set(ids) & set(tokenizer.added.values()) and tokenizer.decode(ids) == "a <|im_end|><s> b"
    assert tokenizer.encode_plain("Hello, été") == tokenizer.encode("Hello, été", add_special_tokens=False)


def test_missing_files(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": 3}', "\x00\xff", "[" * 100_000])
def test_broken_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("number, message", [(0, "different ids"), (1 << 30, "1073741824")])
def test_ids_out_of_order(tmp_path, number, message):
    raw = json.loads(byte_level("gpt2").to_str())
    raw["model"]["vocab"] |= {list(raw["model"]["vocab"])[-1]: number}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_broken_config(tmp_path, content):
    byte_level("gpt2").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer_config"):
        load_tokenizer(tmp_path)
