"""What grammars must know of a model's tokenizer. Read when the first grammar is asked for."""
from gramme.config import GenerationDefaults, ModelConfig
from gramme.grammar.compiler import Vocabulary
from gramme.text.source import TextSource
from gramme.text.tokenizer import load_tokenizer


def vocabulary(text: TextSource, m: ModelConfig, defaults: GenerationDefaults) -> Vocabulary:
    """As many tokens as the model has logits; ids that the tokenizer does not know have no bytes, so no text."""
    t = load_tokenizer(text)
    size = m.vocab_size
    tokens = [t.token_bytes(i) if i < t.vocab_size else b"" for i in range(size)]
    eos = {*m.eos_token_ids, *defaults.eos_token_ids, *([] if t.eos_id is None else [t.eos_id])}
    if not eos:
        raise ValueError("the model names no end token")
    special = {i for i in t.special_ids | eos if i < size}

    def encode(piece: str) -> list[int]:
        """As the model knows the text: a mark such as <tool_call> may be one token, unless it is a special one."""
        ids = t.encode(piece, add_special_tokens=False)
        return t.encode_plain(piece) if special.intersection(ids) else ids

    return Vocabulary(tokens, sorted(special), sorted(eos), encode)
