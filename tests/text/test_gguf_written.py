"""A tokenizer that goes into GGUF cuts as before when it is read from there: by a rule that GGUF has, or whole."""
import json

import pytest
from tiny import SAMPLES, build
from tokenizers import Tokenizer as Inner

from gramme.config import ModelConfig
from gramme.evals.texts import shipped
from gramme.quantize.gguf import tokenizer_metadata
from gramme.text.source import Metadata
from gramme.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [*SAMPLES, "a", " a", "a  ", "x\ny", "<s>a</s>b", " <s> a", "ﬁ ½",
         *(t[:2000] for t in shipped("held-out").values())]
NO_PREFIX = {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


def metaspace(scheme):
    return {"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": scheme}}


@pytest.mark.parametrize("kind, change, rule", [
    ("gpt2", {}, "gpt-2"), ("llama3", {}, "smaug-bpe"), ("llama3", {"ignore_merges": True}, "llama-bpe"),
    ("qwen", {}, "qwen2"), ("qwen", {"normalizer": None}, "smaug-bpe"),
    ("gpt2", {"normalizer": {"type": "NFKC"}}, None), ("llama2", {}, True), ("llama2", NO_PREFIX, False),
    ("llama2", metaspace("never"), False), ("llama2", metaspace("first"), None),
    ("llama2", metaspace("always"), None)])
def test_it_is_the_same_when_it_is_read_back(kind, change, rule):
    """`rule`: the pattern's name, for SentencePiece whether a space comes first, None for the whole."""
    raw = json.loads(build(kind).to_str())
    raw |= {key: value for key, value in change.items() if key != "ignore_merges"}
    raw["model"] |= {key: value for key, value in change.items() if key == "ignore_merges"}
    inner = Inner.from_str(json.dumps(raw))
    tokenizer = Tokenizer(inner, inner.token_to_id("<s>"), inner.token_to_id("</s>"))
    m = ModelConfig(family="llama", vocab_size=tokenizer.vocab_size, width=64, layers=1, heads=4, kv_heads=2,
                    head_dim=16, ff_width=96, norm_eps=1e-5, max_positions=128)
    written = tokenizer_metadata(tokenizer, m)
    back = load_tokenizer(Metadata("m.gguf", written))
    assert [back.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]
    found = written.get("tokenizer.ggml.pre", written.get("tokenizer.ggml.add_space_prefix", True))
    assert (None if "tokenizer.huggingface.json" in written else found) == rule
