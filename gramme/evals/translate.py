"""How well a model translates: chrF and BLEU (sacrebleu's) of greedy answers, with intervals.

The package's pairs (Tatoeba, CC BY 2.0 FR) are held out of the embedded model's training: a sentence and all its
translations, and theirs, lie on one side. Knows no command line.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gramme.config import ConfigError
from gramme.evals.answers import answers
from gramme.evals.summary import Figure
from gramme.llm.llm import LLM

PAIRS = Path(__file__).parent / "texts" / "pairs.tsv"
ASK = {"en-fr": "Translate to French: {}", "fr-en": "Traduis en anglais : {}"}
DRAWS = 300  # of the bootstrap


@dataclass(frozen=True)
class Translation:
    pairs: int
    chrf: Figure
    bleu: Figure
    answers: tuple[str, ...]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(English, French) of each line, with a tab between. Raises ConfigError naming the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    for i, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(pair):
            raise ConfigError(f"{path}, line {i}: English, a tab and French are wanted")
    if not pairs:
        raise ConfigError(f"{path} has no line")
    return [(english, french) for english, french in pairs]


def translate(llm: LLM, pairs: Sequence[tuple[str, str]], direction: str,
              progress: Callable[[int, int], None] = lambda done, total: None) -> Translation:
    """`direction` is a key of ASK."""
    source, target = (0, 1) if direction == "en-fr" else (1, 0)
    made = answers(llm, [ASK[direction].format(pair[source]) for pair in pairs], 96, progress)
    chrf, bleu = _scores(made, [pair[target] for pair in pairs])
    return Translation(len(pairs), chrf, bleu, tuple(made))


def _scores(made: Sequence[str], wanted: Sequence[str]) -> tuple[Figure, Figure]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ConfigError("translations are scored by sacrebleu: pip install 'gramme-engine[eval]'") from None
    return tuple(_figure(metric.corpus_score(made, [wanted], n_bootstrap=DRAWS))  # type: ignore[return-value]
                 for metric in (CHRF(), BLEU()))


def _figure(score: object) -> Figure:
    value, spread = float(score.score), float(score._ci)  # type: ignore[attr-defined]
    return Figure(value, value - spread, value + spread)
