"""A vocabulary in GGUF's keys gives the ids of the tokenizer that it was taken from; one that cannot be is one line."""
import json

import numpy as np
import pytest
from tiny import CONTROL, GPT2, SAMPLES, build
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gramme.config import ModelError
from gramme.text.chat import open_chat
from gramme.text.gguf import WORDS
from gramme.text.source import Metadata
from gramme.text.template import find_template
from gramme.text.tokenizer import load_tokenizer

PRE = {"gpt2": "gpt-2", "llama3": "smaug-bpe", "qwen": "qwen2"}
AT = "tokenizer.ggml."


def metadata(kind):
    """(GGUF's keys, the tokenizer that they say)."""
    tok = build(kind)
    raw = json.loads(tok.to_str())
    vocab = tok.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    special = {t["content"]: t["special"] for t in raw["added_tokens"]}
    types = [3 if special.get(t) else 4 if t in special else 1 for t in tokens]
    keys = {AT + "tokens": tokens, AT + "token_type": np.array(types, np.int32),
            AT + "bos_token_id": vocab["<s>"], AT + "eos_token_id": vocab["</s>"]}
    if kind in PRE:
        merges = [" ".join(m) for m in raw["model"]["merges"]]
        return keys | {AT + "model": "gpt2", AT + "pre": PRE[kind], AT + "merges": merges}, tok
    rank = {"".join(m): i for i, m in reversed(list(enumerate(raw["model"]["merges"])))}
    for i, t in enumerate(tokens):
        types[i] = 6 if t.startswith("<0x") else 2 if t == "<unk>" else types[i]
    scores = [-float(rank.get(t, 10**6)) for t in tokens]
    return keys | {AT + "model": "llama", AT + "scores": np.array(scores, np.float32), AT + "unknown_token_id": 0,
                   AT + "add_bos_token": False, AT + "token_type": np.array(types, np.int32)}, tok


def load(keys):
    return load_tokenizer(Metadata("m.gguf", keys))


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen", "llama2"])
def test_ids_are_those_of_the_tokenizer(kind):
    keys, theirs = metadata(kind)
    ours = load(keys)
    for text in [*SAMPLES, "<|im_start|>user\nété<|im_end|>", "a<tool>b"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        if "<" not in text:
            assert ours.decode(ids) == theirs.decode(ids)
    assert set(CONTROL) <= set(ours.added) and ours.added["<tool>"] not in ours.special_ids
    assert (ours.bos_id, ours.eos_id) == (ours.added["<s>"], ours.added["</s>"])
    assert ours.vocab_size == len(keys[AT + "tokens"])


def test_bos_and_eos_are_put_where_the_file_says():
    for kind, default in (("gpt2", False), ("llama2", True)):
        keys, _ = metadata(kind)
        keys.pop(AT + "add_bos_token", None)
        plain = load(keys | {AT + "add_bos_token": False}).encode("ab")
        bos, eos = keys[AT + "bos_token_id"], keys[AT + "eos_token_id"]
        assert load(keys).encode("ab") == [bos] * default + plain
        both = keys | {AT + "add_bos_token": True, AT + "add_eos_token": True}
        assert load(both).encode("ab") == [bos, *plain, eos]
    keys, _ = metadata("llama3")
    assert load(keys | {AT + "pre": "llama-bpe"}).encode("ab")[0] == keys[AT + "bos_token_id"]


def test_llama_bpe_takes_a_word_that_is_a_token_whole():
    keys, _ = metadata("llama3")
    place = keys[AT + "tokens"].index("<tool>")
    keys[AT + "tokens"][place], keys[AT + "token_type"][place] = "zqzq", 1
    assert len(load(keys).encode("zqzq")) > 1
    assert load(keys | {AT + "pre": "llama-bpe"}).encode("zqzq", add_special_tokens=False) == [place]


def test_the_space_before_the_first_word_is_the_files_choice():
    keys, _ = metadata("llama2")
    with_space, without = load(keys), load(keys | {AT + "add_space_prefix": False})
    assert with_space.encode("ab") == without.encode(" ab") != without.encode("ab")
    assert with_space.decode(with_space.encode("ab")) == without.decode(without.encode("ab")) == "ab"


# Patterns whose ids were those of llama.cpp on 747 texts, each with GPT-2's vocabulary.
CUTS = {
    "gpt-2": ["It", "'s", " 12345", "\n\n", " ok", "!!", "\n"],
    "llama-bpe": ["It", "'s", " ", "123", "45", "\n\n", " ok", "!!\n"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", " ok", "!!\n"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", " ok", "!!", "\n"],
    "tekken": ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", " ok", "!!\n"],
    "gpt-4o": ["It's", " ", "123", "45", "\n\n", " ok", "!!\n"],
    "default": ["It", "'", "s", " ", "123", "45", "\n\n", " ok", "!!", "\n"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_words_are_cut(pre):
    text, split = "It's 12345\n\n ok!!\n", [pre_tokenizers.Split(Regex(p), "isolated") for p in WORDS[pre].patterns]
    assert [w for w, _ in pre_tokenizers.Sequence(split).pre_tokenize_str(text)] == CUTS[pre]


def test_templates_are_in_the_metadata(tmp_path):
    source = Metadata("m.gguf", {"tokenizer.chat_template": "one", "tokenizer.chat_template.tool_use": "two"})
    assert find_template(source) == "one" and find_template(source, None, "tool_use") == "two"
    assert find_template(Metadata("m.gguf", {"tokenizer.chat_template": 3})) is None
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    keys, _ = metadata("qwen")
    chat = open_chat(Metadata("m.gguf", keys), str(tmp_path / "t.jinja"))
    ids = chat.encode(load(keys), [{"role": "user", "content": "a"}])
    chat.close()
    assert ids[-1] == keys[AT + "tokens"].index("<|im_end|>")


def changed(keys, key, at, value):
    old = keys[AT + key]
    new = old.copy()
    new[at] = value
    return keys | {AT + key: new}


@pytest.mark.parametrize("kind, change, match", [
    ("gpt2", {"model": "bert"}, "tokenizer.ggml.model 'bert' is not supported; llama and gpt2 are"),
    ("gpt2", {"model": None}, "tokenizer.ggml.model None is not supported"),
    ("gpt2", {"pre": "brand-new"}, "tokenizer.ggml.pre 'brand-new' is not supported; there are: default, gpt-2"),
    ("gpt2", {"tokens": []}, "tokenizer.ggml.tokens must be a list of strings"),
    ("gpt2", {"tokens": np.arange(3)}, "tokenizer.ggml.tokens must be a list of strings"),
    ("gpt2", {"token_type": np.ones(3, np.int32)}, r"tokenizer.ggml.token_type has 3 entries for \d+ tokens"),
    ("gpt2", {"merges": None}, "tokenizer.ggml.merges must be a list of strings"),
    ("gpt2", {"merges": ["a b", "q ✓"]}, r"tokenizer.ggml.merges\[0\] 'a b' joins or makes a token"),
    ("gpt2", {"merges": [""]}, r"tokenizer.ggml.merges\[0\] '' joins"),
    ("gpt2", {"bos_token_id": 1 << 31}, r"tokenizer.ggml.bos_token_id must be from 0 to \d+, not 2147483648"),
    ("gpt2", {"eos_token_id": -1}, "tokenizer.ggml.eos_token_id must be from 0 to"),
    ("gpt2", {"eos_token_id": "2"}, "tokenizer.ggml.eos_token_id must be from 0 to"),
    ("gpt2", {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token must be true or false, not 1"),
    ("gpt2", {"add_bos_token": True, "bos_token_id": None}, "tokenizer.ggml.add_bos_token asks for a token"),
    ("llama2", {"scores": np.ones(3, np.float32)}, "tokenizer.ggml.scores must be"),
    ("llama2", {"scores": None}, "tokenizer.ggml.scores must be"),
    ("llama2", {"unknown_token_id": 99999}, "tokenizer.ggml.unknown_token_id must be from 0"),
])
def test_keys_that_cannot_be(kind, change, match):
    keys, _ = metadata(kind)
    with pytest.raises(ModelError, match=f"^m.gguf: {match}") as caught:
        load(keys | {AT + k: v for k, v in change.items()})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_tokens_that_cannot_be():
    keys, _ = metadata("gpt2")
    with pytest.raises(ModelError, match=r"^m.gguf: tokenizer.ggml.tokens: 'a' is token \d+ and \d+$"):
        load(changed(keys, "tokens", keys[AT + "tokens"].index("b"), "a"))
    with pytest.raises(ModelError, match=r"there is no token for byte 98 and 0 others"):
        load(changed(keys, "tokens", keys[AT + "tokens"].index("b"), "unlike"))
    for kind in (0, 7, -1):
        with pytest.raises(ModelError, match=f"token_type has the type {kind}; types are 1 to 6"):
            load(changed(keys, "token_type", 5, kind))
    keys, _ = metadata("llama2")
    byte = keys[AT + "tokens"].index("<0x41>")
    for text in ("<0x-1>", "<0x100>", "<0x4G>", "A"):
        with pytest.raises(ModelError, match=r"tokenizer.ggml.tokens: .* byte token"):
            load(changed(keys, "tokens", byte, text))
    for score in (np.nan, np.inf):
        with pytest.raises(ModelError, match=r"tokenizer.ggml.scores must be \d+ finite numbers"):
            load(changed(keys, "scores", 5, score))


def test_a_vocabulary_without_byte_tokens_needs_an_unknown_one():
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"]
    keys = {AT + "model": "llama", AT + "tokens": pieces, AT + "token_type": np.array([2, 3, 3, 1, 1, 1, 1], np.int32),
            AT + "scores": np.zeros(7, np.float32), AT + "add_bos_token": False}
    assert load(keys).encode("ab é") == [6, 5, 3, 0]
    types = np.array([1, 3, 3, 1, 1, 1, 1], np.int32)
    with pytest.raises(ModelError, match="has neither byte tokens nor an unknown one"):
        load(keys | {AT + "token_type": types})


def test_gpt2_needs_no_type_and_no_word_cutter():
    keys, _ = metadata("gpt2")
    for name in ("token_type", "pre"):
        del keys[AT + name]
    plain = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(keys[AT + "tokens"])},
                                 merges=[tuple(m.split(" ")) for m in keys[AT + "merges"]]))
    plain.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    text = "naïve words and café"
    assert load(keys).encode(text) == plain.encode(text).ids
