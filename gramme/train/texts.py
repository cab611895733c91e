"""Where the embedded model's texts come from: reading, cleaning, deduplication, and the split into training and test.

Knows the forms of the files (pairs, novels, help) and no token. Licences are the caller's business, who says where the
files are; see the model card for what may be used.
"""
import io
import lzma
import random
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gramme.train.tokenizer import SAME

Pair = tuple[str, str]  # (English, French)
SHORTEST_NOVEL = 10_000  # characters; what is shorter in an archive of novels is a notice or a table
SPLIT_SEED = 0
FRONT_MATTER = 2000  # characters of a novel that are left out: titles, notes of the edition


@dataclass(frozen=True)
class Texts:
    pairs: list[Pair]
    held_out_pairs: list[Pair]
    novels: dict[str, list[str]]  # language -> novels
    held_out_novels: dict[str, list[str]]
    help: list[Pair]


def read_texts(pairs_zip: Path, novels: dict[str, Path], help_tsv: Path | None = None, held_out: int = 1000) -> Texts:
    """Held out are whole components of the graph of translations, and the last two novels of each language: the same in
    every run, as one may begin with another's weights and must not be trained on what that one was judged by."""
    train, test = split_pairs(list(_pairs(pairs_zip)), held_out, SPLIT_SEED)
    books = {language: list(_novels(path)) for language, path in novels.items()}
    tested = {sentence for pair in test for sentence in pair}
    manual = [p for p in _help(help_tsv) if not tested & set(p)] if help_tsv else []
    return Texts(train, test, {k: v[:-2] for k, v in books.items()}, {k: v[-2:] for k, v in books.items()}, manual)


def split_pairs(pairs: Sequence[Pair], held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """A sentence and all its translations, and theirs in turn, land on one side."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(x: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    for english, french in pairs:
        parent[find(("en", english))] = find(("fr", french))
    groups: dict[tuple[str, str], list[Pair]] = {}
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
    """One line in NFC, with plain quotes, apostrophes and spaces."""
    text = unicodedata.normalize("NFC", text)
    for typographic, plain in SAME:
        text = text.replace(typographic, plain)
    return " ".join(text.split())


def parts(book: str, size: int = 4000) -> Iterator[str]:
    """Pieces of a novel without its front matter, at most a hundred, so that no novel weighs more than others."""
    for i in range(FRONT_MATTER, min(len(book), 100 * size) - size, size):
        yield book[i : i + size]


def _pairs(path: Path) -> Iterator[Pair]:
    """Tatoeba's pairs in the form of manythings.org/anki: English, tab, French; each once."""
    seen = set()
    with zipfile.ZipFile(path) as z:
        name = next(n for n in z.namelist() if n.endswith("fra.txt"))
        for line in io.TextIOWrapper(z.open(name), "utf-8"):
            english, french = (clean(part) for part in line.split("\t")[:2])
            if english and french and (english, french) not in seen:
                seen.add((english, french))
                yield english, french


def _novels(path: Path) -> Iterator[str]:
    """One text a novel; a line that an earlier novel of the archive has is left out: headers, notices, imprints."""
    seen: set[str] = set()
    with tarfile.open(path) as tar:
        texts = (m for m in tar.getmembers() if m.isfile() and m.name.endswith(".txt"))
        for member in sorted(texts, key=lambda m: m.name):
            file = tar.extractfile(member)
            text = file.read().decode("utf-8", "replace") if file else ""
            if len(text) > SHORTEST_NOVEL:
                lines = [line for line in map(clean, text.splitlines()) if line]
                yield "\n".join(line for line in lines if line not in seen or len(line) < 40)
                seen.update(lines)


def _help(path: Path) -> Iterator[Pair]:
    """Sentences of LibreOffice's help whose two sides are prose of like length, none of it code; each once."""
    seen = set()
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            english, french = (clean(part) for part in line.rstrip("\n").split("\t")[2:4])
            key = english.lower()
            if key not in seen and english != french and _is_prose(english) and _is_prose(french) \
                    and 0.5 < len(french) / len(english) < 2.2:
                seen.add(key)
                yield english, french


def _is_prose(text: str) -> bool:
    plain = len(re.findall(r"[^\W\d_]|[ ,.']", text))
    return 15 <= len(text) <= 160 and text.count(" ") >= 2 and plain > 0.95 * len(text)
