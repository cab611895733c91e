"""What grammars must know of a model's tokenizer. Read when the first grammar is asked for."""
from gramme.grammar.compiler import Vocabulary
from gramme.models.open import Opened
from gramme.text.tokenizer import load_tokenizer


def vocabulary(opened: Opened) -> Vocabulary:
    """As many tokens as the model has logits; ids that the tokenizer does not know have no bytes, so no text."""
    t = load_tokenizer(opened.text)
    size = opened.config.vocab_size
    tokens = [t.token_bytes(i) if i < t.vocab_size else b"" for i in range(size)]
    eos = {*opened.config.eos_token_ids, *opened.defaults.eos_token_ids, *([] if t.eos_id is None else [t.eos_id])}
    if not eos:
        raise ValueError("the model names no end token")
    special = {i for i in t.special_ids | eos if i < size}

    def encode(text: str) -> list[int]:
        """As the model knows the text: a mark such as <tool_call> may be one token, unless it is a special one."""
        ids = t.encode(text, add_special_tokens=False)
        return t.encode_plain(text) if special.intersection(ids) else ids

    return Vocabulary(tokens, sorted(special), sorted(eos), encode)
