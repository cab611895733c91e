"""`gramme eval`: how well a model predicts texts (ppl), and what it lost against another (kl); `eval_answers` has the
measures of what it says."""
import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from gramme.cli import eval_answers
from gramme.cli.flags import settle
from gramme.cli.options import EvalOptions
from gramme.cli.progress import Bar
from gramme.config import ConfigError, EngineConfig
from gramme.evals import texts
from gramme.evals.scores import Window, compare, noise_floor, score, windows
from gramme.evals.subject import Subject, load
from gramme.evals.summary import Figure, loss, quality
from gramme.models.open import open_model

WINDOW = 2048  # tokens, as in the papers; less when the model's context is shorter


def main(args: argparse.Namespace) -> None:
    engine, asked = settle(args, EngineConfig), settle(args, EvalOptions)
    if args.measure not in ("ppl", "kl"):
        return eval_answers.report(args.measure, engine, asked)
    window = min(WINDOW, open_model(engine).config.max_positions) if asked.window is None else asked.window
    model = load(engine, window)
    named = texts.read(asked.text) if asked.text else texts.shipped("held-out")
    stride = window if asked.stride is None else asked.stride
    record: dict[str, Any] = {"model": model.name, "window": window, "stride": stride}
    if args.measure == "kl":
        reference = load(_reference(engine, asked.reference), window, exact=True)
        record["reference"] = reference.name
        record["texts"] = {name: _loss(reference, model, text, name, record) for name, text in named.items()}
    else:
        record["texts"] = {name: _quality(model, text, name, record) for name, text in named.items()}
    _print(record, asked.json)


def _reference(engine: EngineConfig, name: str | None) -> EngineConfig:
    """The model that is named, else the same one in full precision."""
    return replace(engine, model=engine.model if name is None else name, dtype="float32")


def _quality(model: Subject, text: str, name: str, record: dict[str, Any]) -> dict[str, Any]:
    cut = _cut(model.tokenizer.encode(text), name, record)
    return asdict(quality(score(model, cut, Bar(name))))


def _loss(reference: Subject, model: Subject, text: str, name: str, record: dict[str, Any]) -> dict[str, Any]:
    ids = reference.tokenizer.encode(text)
    if ids != model.tokenizer.encode(text) or reference.config.vocab_size != model.config.vocab_size:
        raise ConfigError("KL compares two distributions over one vocabulary: these models cut the text differently; "
                          "compare their bits per byte: gramme eval ppl")
    cut = _cut(ids, name, record)
    return asdict(loss(compare(reference, model, cut, Bar(name)))) | {"kl_noise_floor": noise_floor(reference, cut)}


def _cut(ids: Sequence[int], name: str, record: dict[str, Any]) -> list[Window]:
    try:
        return windows(ids, record["window"], record["stride"])
    except ConfigError as error:
        raise ConfigError(f"text {name!r:.60}: {error}") from None


def _print(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    against = f" against {record['reference']} in float32" if "reference" in record else ""
    print(f"{record['model']}{against}: windows of {record['window']} tokens, stride {record['stride']}; "
          "in brackets: 95 % intervals")
    for name, r in record["texts"].items():
        print(f"{name}, {r['tokens']} tokens")
        for line in lines(r):
            print(f"  {line}")


def lines(r: dict[str, Any]) -> Sequence[str]:
    """A record of `Quality` or `Loss`, one figure a line."""
    f = {key: Figure(**value) for key, value in r.items() if isinstance(value, dict)}
    out = [f"perplexity      {_figure(f['perplexity'])}", f"bits per byte   {_figure(f['bits_per_byte'])}"]
    if "kl" in f:
        out += [
            f"reference       {_figure(f['reference_perplexity'])}",
            f"increase        {_figure(f['perplexity_increase'], 100, ' %')}",
            f"KL, mean        {_figure(f['kl'])} nats (rounding alone: {r['kl_noise_floor']:.1e})",
            f"KL, p99         {_figure(f['kl_p99'])} nats",
            f"top-1 agreement {_figure(f['top1_agreement'], 100, ' %')}",
        ]
    return out


def _figure(f: Figure, times: float = 1, unit: str = "") -> str:
    return f"{times * f.value:.4g}{unit} [{times * f.low:.4g}, {times * f.high:.4g}]"
