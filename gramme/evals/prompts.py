"""What a model says to fifty fixed prompts that the embedded model was not trained on, and how often it repeats itself
or invents a fact. Knows no command line."""
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gramme.evals.answers import answers
from gramme.llm.llm import LLM

PROMPTS = Path(__file__).parent / "texts" / "prompts.json"
# An answer to a question of fact that says so, in either language, invents nothing.
HONEST = re.compile(r"\b(do not|don't) know\b|\bne (connais|sais) pas\b", re.IGNORECASE)
GRAM = 4  # words


@dataclass(frozen=True)
class Answers:
    rows: tuple[tuple[str, str, str], ...]  # kind, prompt, answer
    repeated: float  # share of the continuations' runs of GRAM words that stand there a second time
    invented: int  # questions of fact that were answered otherwise than by not knowing
    facts: int  # questions of fact


def ask(llm: LLM, max_tokens: int = 96,
        progress: Callable[[int, int], None] = lambda done, total: None) -> Answers:
    prompts = json.loads(PROMPTS.read_text("utf-8"))
    made = answers(llm, [p["prompt"] for p in prompts], max_tokens, progress)
    rows = tuple((p["kind"], p["prompt"], answer) for p, answer in zip(prompts, made, strict=True))
    facts = [answer for kind, _, answer in rows if kind == "fact"]
    continued = [answer for kind, _, answer in rows if kind == "continue"]
    return Answers(rows, repetition(continued), sum(not HONEST.search(a) for a in facts), len(facts))


def repetition(texts: Sequence[str]) -> float:
    """Share, 0 to 1, of all runs of GRAM words that their text already had."""
    seen, again = 0, 0
    for text in texts:
        words = text.lower().split()
        runs = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
        seen += len(runs)
        again += len(runs) - len(set(runs))
    return again / seen if seen else 0.0
