"""Trains the embedded model's tokenizer: byte-level BPE on as much French as English."""
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<s>", "</s>", "[INST]", "[/INST]")
# Words keep the space before them; an elision (l', d', qu') and an English ending ('s, 't) are pieces of their own.
PIECES = r" ?\p{L}+'|'(?:s|t|m|d|ll|re|ve)\b| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
# Keyboards and typographers write these differently; the model need not learn the difference.
SAME = (("\u202f", " "), ("\xa0", " "), ("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("…", "..."))
# Rows are one question and its answer, so only the last question is shown, and what has been said to it.
TEMPLATE = (
    "{% set last = namespace(question=0) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{% set last.question = loop.index0 %}"
    "{% elif message.role not in ('assistant', 'system') %}{{ raise_exception('unknown role ' ~ message.role) }}"
    "{% endif %}{% endfor %}"
    "{{ bos_token }}{% for message in messages[last.question:] %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }}[/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *(normalizers.Replace(a, b) for a, b in SAME)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "add_bos_token": False, "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
