"""The command line: which verbs there are. Each verb's work stands in a file of its own, imported when it is chosen."""
import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from gramme import __version__
from gramme.cli.flags import Parser, add_flags, options
from gramme.cli.options import (
    RECIPE,
    BenchOptions,
    DoctorOptions,
    EvalOptions,
    OutputOptions,
    PlanOptions,
    QuantizeOptions,
    RunOptions,
    SamplingOptions,
    TrainOptions,
)
from gramme.config import ConfigError, EngineConfig, ModelError
from gramme.request import RequestError
from gramme.serve.options import ServeOptions

MODEL = ("a directory, a GGUF file, a hub id such as org/name[@revision] or org/name-GGUF:Q4_K_M, or dummy:SHAPE; "
         "nothing means the embedded model")


class Verb(NamedTuple):
    help: str
    home: str  # the module of cli that does the work
    records: Sequence[type] = ()  # their fields are the verb's flags
    needs_model: bool = False


VERBS = {
    "run": Verb("answer one prompt, or continue it", "run", (EngineConfig, SamplingOptions, RunOptions)),
    "chat": Verb("hold a conversation in the terminal", "chat", (EngineConfig, SamplingOptions)),
    "serve": Verb("answer over HTTP, in the form of OpenAI's API", "serve", (EngineConfig, ServeOptions)),
    "plan": Verb("whether a model fits, how fast it would be, and which configuration to take", "plan",
                 (EngineConfig, PlanOptions)),
    "bench": Verb("measure a model in this process, beside its ceilings and its prediction", "bench",
                  (EngineConfig, BenchOptions)),
    "eval": Verb("measure a model: on texts, beside a reference, its translations, its answers", "eval",
                 (EngineConfig, EvalOptions)),
    "quantize": Verb("make a 4- or 8-bit copy that has lost little in every language", "quantize", (QuantizeOptions,),
                     needs_model=True),
    "train": Verb("train a model on your own texts: --config FILE is the recipe", "train", (TrainOptions,)),
    "pull": Verb("fetch a model from the hub", "models", needs_model=True),
    "list": Verb("the models on this machine", "models", (OutputOptions,)),
    "show": Verb("what a model is and what it would take", "models", (EngineConfig, OutputOptions)),
    "rm": Verb("remove a model from the hub's cache", "models", needs_model=True),
    "doctor": Verb("what this machine has and which kernels would run", "doctor", (DoctorOptions,)),
}


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="gramme", allow_abbrev=False, description=(
        "Run open-weight language models on hardware you own. Every flag is also GRAMME_FLAG in the environment and a "
        "key in --config FILE."))
    top.add_argument("--version", action="version", version=f"gramme {__version__}")
    keys = {"model", *RECIPE, *(name for verb in VERBS.values() for record in verb.records for name in options(record))}
    made = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        p = made.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        p.set_defaults(keys=keys)
        if name == "eval":
            p.add_argument("measure", choices=("ppl", "kl", "translate", "prompts", "bias"), help=(
                "perplexity; what was lost against --reference; chrF and BLEU; answers to fifty prompts; CrowS-Pairs"))
        if name == "bench":
            p.add_argument("measure", choices=("run",))
        if verb.needs_model:
            p.add_argument("model", help=MODEL if name == "quantize" else "org/name[@revision]")
        elif EngineConfig in verb.records:
            p.add_argument("model", nargs="?", help=MODEL)
        if name == "quantize":
            p.add_argument("out", help="the directory to make; with several formats each becomes OUT-FORMAT")
        if verb.records:
            add_flags(p, verb.records)
    return top


def run(argv: Sequence[str]) -> int:
    """0: done; 1: our fault; 2: what the user asked cannot be done."""
    args = parser().parse_args(argv)
    try:
        return int(import_module(f"gramme.cli.{VERBS[args.verb].home}").main(args) or 0)
    except (ConfigError, ModelError, RequestError) as error:
        print(f"gramme: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
