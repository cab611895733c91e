"""Tiny tokenizers of each published kind, trained on the text below; no test in here."""
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = ["The quick brown fox jumps over the lazy dog, and the dog does not mind. ", "def f(x):\n    return x ** 2\n\n",
        "Un café à l'été, où l'élève naïf a reçu cent œufs ; c'est déjà Noël. ",
        "naïve 1234 tokens   and   spaces\t\n",
        "user assistant system tool call name arguments city Paris weather"] * 3
CONTROL = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<tool>", "[INST]", "[/INST]", "<s>", "</s>"]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
KINDS = ["gpt2", "llama3", "qwen", "llama2", "metaspace"]
SAMPLES = ["", " ", "  two", "Hello world", "L'été à Noël : œuf", "e\u0301te\u0301", "x = [i for i in range(9)]\n\n\tx",
           "🙂👩‍👩‍👧 ok", " " * 70, "\n\n\n", "1234567", "日本語 текст", "".join(map(chr, range(1, 256)))]


def byte_level(kind):
    pattern = {"gpt2": GPT2, "llama3": LLAMA3, "qwen": LLAMA3.replace("{1,3}", "")}[kind]
    tok = Tokenizer(models.BPE())
    if kind == "qwen":
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return tok


def sentencepiece_like(kind):
    tok = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=pieces, show_progress=False)
    tok.train_from_iterator([t.replace(" ", "▁") for t in TEXT], trainer)
    raw = json.loads(tok.to_str())
    raw["added_tokens"] = raw["added_tokens"][:1]
    tok = Tokenizer.from_str(json.dumps(raw))
    if kind == "llama2":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    return tok


def build(kind):
    tok = byte_level(kind) if kind in ("gpt2", "llama3", "qwen") else sentencepiece_like(kind)
    tok.add_tokens([AddedToken(c, special=c != "<tool>", normalized=False) for c in CONTROL])
    return tok


def save(kind, directory):
    directory.mkdir(parents=True, exist_ok=True)
    build(kind).save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast",
              "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
