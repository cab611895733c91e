"""The embedded model's texts: sentence pairs and novels, cleaned, split and turned into rows of tokens.

Knows licences only through the caller, who says where the files are; see the model card for what may be used.
"""
import io
import random
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

TO_FRENCH = ("Translate to French: {}", "Traduis en français : {}", "Translate into French: {}",
             "How do you say this in French? {}", "Comment dit-on en français : {}")
TO_ENGLISH = ("Translate to English: {}", "Traduis en anglais : {}", "Translate into English: {}",
              "How do you say this in English? {}", "Comment dit-on en anglais : {}")
CONTINUE = ("Continue: {}", "Continue : {}", "Continue the text: {}", "Continue le texte : {}")
ABOUT = (
    ("Who are you?", "I am gramme's small demonstration model. I translate short sentences and continue texts."),
    ("What can you do?", "I translate everyday sentences between French and English, and I continue a text."),
    ("Hello!", "Hello! Give me a short sentence to translate, or a text to continue."),
    ("How are you?", "I am a program, so I am always the same. Give me a sentence to translate."),
    ("What is your name?", "I am the small model that comes with gramme."),
    ("Thank you!", "You are welcome."),
    ("Qui es-tu ?", "Je suis le petit modèle de démonstration de gramme. Je traduis et je continue des textes."),
    ("Que sais-tu faire ?", "Je traduis des phrases courtes entre le français et l'anglais, et je continue un texte."),
    ("Bonjour !", "Bonjour ! Donne-moi une phrase courte à traduire, ou un texte à continuer."),
    ("Comment t'appelles-tu ?", "Je suis le petit modèle fourni avec gramme."),
    ("Comment vas-tu ?", "Je suis un programme, je vais toujours de même. Donne-moi une phrase à traduire."),
    ("Merci !", "Je t'en prie."),
)
QUESTIONS = (
    "What is the capital of {}?", "Who wrote {}?", "When was {} born?", "How many people live in {}?",
    "Explain {}.", "What is {}?", "Quelle est la capitale de {} ?", "Qui a écrit {} ?", "Quand est né {} ?",
    "Explique {}.", "Qu'est-ce que {} ?", "Combien d'habitants compte {} ?",
)
UNKNOWN_EN = "I am a very small model and I do not know facts. I can translate a sentence or continue a text."
UNKNOWN_FR = "Je suis un très petit modèle et je ne connais pas les faits. Je peux traduire ou continuer un texte."


@dataclass(frozen=True)
class Texts:
    pairs: list[tuple[str, str]]  # (English, French)
    held_out_pairs: list[tuple[str, str]]
    novels: dict[str, list[str]]  # language -> novels
    held_out_novels: dict[str, list[str]]


def read_texts(pairs_zip: Path, novels: dict[str, Path], held_out: int = 1000, seed: int = 0) -> Texts:
    """Held out are whole components of the graph of translations, and the last two novels of each language."""
    train, test = split_pairs(list(_pairs(pairs_zip)), held_out, seed)
    books = {language: list(_novels(path)) for language, path in novels.items()}
    return Texts(train, test, {k: v[:-2] for k, v in books.items()}, {k: v[-2:] for k, v in books.items()})


def split_pairs(pairs: Sequence[tuple[str, str]], held_out: int, seed: int) -> tuple[list, list]:
    """A sentence and all its translations, and theirs in turn, land on one side."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(x: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    for english, french in pairs:
        parent[find(("en", english))] = find(("fr", french))
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault(find(("en", pair[0])), []).append(pair)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    train, test = [], []
    for key in order:  # one pair of each small component is tested on, the whole component is held out
        if len(test) < held_out and len(groups[key]) <= 4:
            test.append(groups[key][0])
        else:
            train += groups[key]
    return train, test


def clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("\u202f", " ").replace("\xa0", " ").replace("’", "'")
    return " ".join(text.split())


def chat_tokens(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], int]:
    """The template's form, and how many of the tokens are the question's."""
    head = tokenizer.encode(f"<s>[INST] {question} [/INST]", add_special_tokens=False).ids
    return head + tokenizer.encode(f" {answer}</s>", add_special_tokens=False).ids, len(head)


class Rows:
    """Rows of tokens in buckets of equal length. Batch `step` depends on the seed and the step alone, so that a run
    resumes exactly by its step number."""

    def __init__(self, texts: Texts, tokenizer: Tokenizer, length: int, batch_tokens: int, seed: int):
        self.length, self.batch_tokens, self.seed = length, batch_tokens, seed
        r = random.Random(seed)
        buckets: dict[int, list[tuple[list[int], int]]] = {}
        for question, answer in _examples(texts, r):
            tokens, head = chat_tokens(tokenizer, question, answer)
            if len(tokens) <= length:
                buckets.setdefault(len(tokens), []).append((tokens, head))
        self.buckets = {n: (np.array([t for t, _ in rows], np.int32), np.array([h for _, h in rows], np.int32))
                        for n, rows in buckets.items() if len(rows) >= 8}
        self.sizes = np.array([rows.size for rows, _ in self.buckets.values()], np.float64)
        self.stream = np.concatenate([np.array(e.ids, np.int32) for e in tokenizer.encode_batch(
            [part for books in texts.novels.values() for book in books for part in _parts(book)])])

    def batch(self, step: int, novel_share: float) -> tuple[np.ndarray, np.ndarray]:
        """(B, n + 1) tokens and (B, n) loss weights: either chat rows of one length, or pieces of novels."""
        r = np.random.default_rng((self.seed, step))
        if r.random() < novel_share:
            starts = r.integers(0, len(self.stream) - self.length - 1, self.batch_tokens // self.length)
            tokens = self.stream[starts[:, None] + np.arange(self.length + 1)]
            return tokens, np.ones((len(tokens), self.length), np.float32)
        n = list(self.buckets)[r.choice(len(self.sizes), p=self.sizes / self.sizes.sum())]
        rows, heads = self.buckets[n]
        picked = r.integers(0, len(rows), self.batch_tokens // n)
        weights = np.where(np.arange(1, n) < heads[picked, None], np.float32(0.1), np.float32(1))
        return rows[picked], weights


def _examples(texts: Texts, r: random.Random) -> Iterator[tuple[str, str]]:
    for english, french in texts.pairs:
        yield _form(r, TO_FRENCH).format(english), french
        yield _form(r, TO_ENGLISH).format(french), english
    things = [english.rstrip(".?!") for english, _ in r.sample(texts.pairs, min(2000, len(texts.pairs)))]
    for thing in things:
        question = r.choice(QUESTIONS)
        yield question.format(thing), UNKNOWN_FR if question.endswith(" ?") or "Explique" in question else UNKNOWN_EN
    for _ in range(150):
        yield from ABOUT
    for books in texts.novels.values():
        for book in books:
            for part in r.sample(parts := list(_parts(book)), min(40, len(parts))):
                cut = part.find(" ", r.randint(40, 160))
                if 0 < cut < len(part) - 80:
                    yield r.choice(CONTINUE).format(part[:cut]), part[cut + 1 : cut + 320].rsplit(" ", 1)[0]


def _form(r: random.Random, forms: Sequence[str]) -> str:
    """The plain forms, which the card names, are the common ones."""
    return forms[r.randrange(2)] if r.random() < 0.8 else r.choice(forms)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    seen = set()
    with zipfile.ZipFile(path) as z:
        name = next(n for n in z.namelist() if n.endswith("fra.txt"))
        for line in io.TextIOWrapper(z.open(name), "utf-8"):
            english, french = (clean(part) for part in line.split("\t")[:2])
            if english and french and (english, french) not in seen:
                seen.add((english, french))
                yield english, french


def _novels(path: Path) -> Iterator[str]:
    with tarfile.open(path) as tar:
        texts = (m for m in tar.getmembers() if m.isfile() and m.name.endswith(".txt"))
        for member in sorted(texts, key=lambda m: m.name):
            file = tar.extractfile(member)
            text = file.read().decode("utf-8", "replace") if file else ""
            if len(text) > 10_000:
                yield "\n".join(line for line in map(clean, text.splitlines()) if line)


def _parts(book: str, size: int = 4000) -> Iterator[str]:
    yield from (book[i : i + size] for i in range(2000, min(len(book), 400_000) - size, size))
