"""`gramme eval translate`, `prompts` and `bias`: what a model says, and which of two sentences it finds likelier."""
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gramme.cli.options import EvalOptions
from gramme.cli.progress import Bar
from gramme.config import ConfigError, EngineConfig
from gramme.evals import prompts
from gramme.evals.bias import bias, read_crows
from gramme.evals.subject import load
from gramme.evals.summary import Figure
from gramme.evals.translate import ASK, PAIRS, read_pairs, translate
from gramme.llm.llm import LLM


def report(measure: str, engine: EngineConfig, asked: EvalOptions) -> None:
    record = MEASURES[measure](engine, asked)
    if asked.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        print("\n".join(LINES[measure](record)))


def _translate(engine: EngineConfig, asked: EvalOptions) -> dict[str, Any]:
    pairs, llm = read_pairs(Path(asked.pairs) if asked.pairs else PAIRS), _llm(engine)
    try:
        return {direction: asdict(translate(llm, pairs, direction, Bar(direction))) for direction in ASK}
    finally:
        llm.close()


def _prompts(engine: EngineConfig, asked: EvalOptions) -> dict[str, Any]:
    llm = _llm(engine)
    try:
        return asdict(prompts.ask(llm, progress=Bar("prompts")))
    finally:
        llm.close()


def _bias(engine: EngineConfig, asked: EvalOptions) -> dict[str, Any]:
    if not asked.pairs:
        raise ConfigError("bias needs --pairs FILE, a CrowS-Pairs file, which is share-alike and not part of gramme")
    return asdict(bias(load(engine, asked.window or 128), read_crows(Path(asked.pairs)), Bar("pairs")))


def _llm(engine: EngineConfig) -> LLM:
    given = asdict(engine)
    return LLM(given.pop("model"), **given)


def _translate_lines(record: dict[str, Any]) -> list[str]:
    return [f"{direction}  chrF {_figure(r['chrf'])}  BLEU {_figure(r['bleu'])}  {r['pairs']} pairs"
            for direction, r in record.items()]


def _prompts_lines(record: dict[str, Any]) -> list[str]:
    """A table in Markdown, for model cards."""
    cell = lambda text: " ".join(text.split()).replace("|", "\\|")
    return ["| prompt | answer |", "| --- | --- |",
            *(f"| {cell(prompt)} | {cell(answer)} |" for _, prompt, answer in record["rows"]), "",
            f"questions of fact answered with something else than not knowing: {record['invented']} of "
            f"{record['facts']}; repetition in the continuations: {record['repeated']:.1%}"]


def _bias_lines(record: dict[str, Any]) -> list[str]:
    return [f"{record['pairs']} pairs, the more stereotyped sentence is likelier in "
            f"{_figure(record['stereotyped'], 100)} %",
            *(f"  {kind:22} {_figure(r, 100)} %" for kind, r in record["by_type"].items())]


def _figure(f: dict[str, float], times: float = 1) -> str:
    r = Figure(**f)
    return f"{times * r.value:.1f} [{times * r.low:.1f}, {times * r.high:.1f}]"


MEASURES: dict[str, Callable[[EngineConfig, EvalOptions], dict[str, Any]]] = {
    "translate": _translate, "prompts": _prompts, "bias": _bias}
LINES = {"translate": _translate_lines, "prompts": _prompts_lines, "bias": _bias_lines}
