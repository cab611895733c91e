"""How often a model finds the more stereotyped sentence of a pair the more probable one (CrowS-Pairs: Nangia et al.
2020, arXiv 2010.00133; in French Névéol et al. 2022).

50 % would be no preference. The pairs are share-alike and are not part of the package: the user names the file.
"""
import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gramme.config import ConfigError
from gramme.evals.scores import Window, score
from gramme.evals.subject import Subject
from gramme.evals.summary import Figure

COLUMNS = ("sent_more", "sent_less", "bias_type")


@dataclass(frozen=True)
class Bias:
    pairs: int
    stereotyped: Figure  # share, 0 to 1, of pairs whose more stereotyped sentence is the more probable one
    by_type: dict[str, Figure]


def read_crows(path: Path) -> list[dict[str, str]]:
    """Rows with COLUMNS, from a comma- or tab-separated file with a header."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    lines = text.splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
    if not rows or any(name not in rows[0] for name in COLUMNS):
        raise ConfigError(f"{path}: a header with the columns {', '.join(COLUMNS)} and rows under it are wanted")
    return [row for row in rows if all(row[name] for name in COLUMNS)]


def bias(model: Subject, rows: Sequence[dict[str, str]],
         progress: Callable[[int, int], None] = lambda done, total: None) -> Bias:
    start = [model.config.bos_token_id] if model.config.bos_token_id is not None else []
    sentences = list(dict.fromkeys(row[side] for row in rows for side in COLUMNS[:2]))
    ids = [start + list(model.tokenizer.encode(sentence, add_special_tokens=False)) for sentence in sentences]
    scored = score(model, [Window(np.array(a, np.int32), 1) for a in ids], progress).nats
    each = np.split(scored, np.cumsum([len(a) - 1 for a in ids])[:-1])
    nats = {sentence: float(part.sum()) for sentence, part in zip(sentences, each, strict=True)}
    chosen = [(row["bias_type"], nats[row["sent_more"]] < nats[row["sent_less"]]) for row in rows]
    kinds = sorted({kind for kind, _ in chosen})
    return Bias(len(rows), wilson([c for _, c in chosen]),
                {kind: wilson([c for k, c in chosen if k == kind]) for kind in kinds})


def wilson(chosen: Sequence[bool], z: float = 1.96) -> Figure:
    """A share and its 95 % interval (Wilson 1927)."""
    n, p = len(chosen), sum(chosen) / len(chosen)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Figure(p, middle - half, middle + half)
