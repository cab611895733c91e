"""`gramme quantize`: a model's 4- or 8-bit copy, saved when it lost little enough in every language."""
import argparse
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gramme.cli.flags import settle
from gramme.cli.options import QuantizeOptions
from gramme.cli.progress import Bar
from gramme.config import ConfigError, EngineConfig
from gramme.evals import texts
from gramme.models.open import open_model

GROUP = {"gguf": 32}  # of other formats 128


def main(args: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise ConfigError("gramme quantize needs PyTorch: pip install 'gramme-engine[quantize]'")
    from gramme.quantize.device import chosen
    from gramme.quantize.limits import read_limits
    from gramme.quantize.recipe import FORMATS, Recipe
    from gramme.quantize.run import Task, set_threads, true_dtype
    from gramme.quantize.session import Wish, quantise

    asked = settle(args, QuantizeOptions)
    formats, languages = list(dict.fromkeys(asked.format.split(","))), asked.languages.split(",")
    if unknown := [f for f in formats if f not in FORMATS]:
        raise ConfigError(f"--format {unknown[0]!r:.30} is not written; there are: {', '.join(FORMATS)}")
    out = Path(args.out)
    if out.name in ("", ".."):
        raise ConfigError(f"OUT must be the name of a directory that is to be made, not {args.out!r:.60}")
    if asked.threads is not None and asked.threads < 1:
        raise ConfigError(f"--threads must be at least 1, not {asked.threads}")
    set_threads(asked.threads)
    device = chosen(asked.device)
    opened = open_model(EngineConfig(model=args.model))
    recipes = {f: Recipe(method=asked.method, bits=asked.bits, format=f, embedding_bits=asked.embedding_bits,
                         group=GROUP.get(f, 128) if asked.group is None else asked.group) for f in formats}
    task = Task(
        args.model, replace(opened, config=true_dtype(opened)), recipes,
        texts.read(asked.calibration_text) if asked.calibration_text else texts.shipped("calibration", languages),
        asked.tokens, min(512, opened.config.max_positions) if asked.window is None else asked.window, device)
    check = texts.read(asked.check_text) if asked.check_text else texts.shipped("held-out", languages)
    wish = Wish(
        {f: out if len(formats) == 1 else out.with_name(f"{out.name}-{f}") for f in formats},
        out.with_name(out.name + ".partial"), check,
        read_limits(asked.max_kl, asked.max_ppl_increase, check), asked.keep_worst, asked.layers)
    return quantise(task, wish, lambda line: print(line, flush=True), Bar)
