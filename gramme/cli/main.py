"""The command line: which verbs there are. Each verb's work stands in a file of its own, imported when it is chosen."""
import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple

from gramme import __version__
from gramme.cli.flags import Parser, add_flags, options
from gramme.cli.options import (
    RECIPE,
    BenchOptions,
    DoctorOptions,
    EvalOptions,
    LoadOptions,
    OutputOptions,
    PlanOptions,
    QuantizeOptions,
    RunOptions,
    SamplingOptions,
    ServeBenchOptions,
    SweepOptions,
    TrainOptions,
)
from gramme.config import ConfigError, EngineConfig, ModelError
from gramme.request import RequestError
from gramme.serve.options import ServeOptions

MODEL = ("a directory, a GGUF file, a hub id such as org/name[@revision] or org/name-GGUF:Q4_K_M, or dummy:SHAPE; "
         "nothing means the embedded model")
SOURCE = 'a directory, a hub id such as org/name[@revision], or dummy:SHAPE; "" means the embedded model'


class Verb(NamedTuple):
    help: str
    home: str  # the module of cli that does the work
    records: Sequence[type] = ()  # their fields are the verb's flags
    needs_model: bool = False
    measures: "Mapping[str, Verb]" = MappingProxyType({})  # verbs of its own


LOAD = (EngineConfig, LoadOptions)
MEASURES = {
    "run": Verb("a model in this process, beside its ceilings and its prediction", "bench",
                (EngineConfig, BenchOptions)),
    "serve": Verb("an OpenAI-compatible server under a load: latencies, throughput, goodput", "bench_serve",
                  (*LOAD, ServeBenchOptions)),
    "sweep": Verb("the same at several rates, with the knee, a table and a plot", "bench_sweep", (*LOAD, SweepOptions)),
    "compare": Verb("ratios of two results of the same workload", "bench_compare"),
}
VERBS = {
    "run": Verb("answer one prompt, or continue it", "run", (EngineConfig, SamplingOptions, RunOptions)),
    "chat": Verb("hold a conversation in the terminal", "chat", (EngineConfig, SamplingOptions)),
    "serve": Verb("answer over HTTP, in the form of OpenAI's API", "serve", (EngineConfig, ServeOptions)),
    "plan": Verb("whether a model fits, how fast it would be, and which configuration to take", "plan",
                 (EngineConfig, PlanOptions)),
    "bench": Verb("measure speed: in this process, over HTTP, at several rates; compare results", "bench",
                  measures=MEASURES),
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
    keys = {"model", *RECIPE, *(name for verb in every_verb() for record in verb.records for name in options(record))}
    top.set_defaults(keys=keys)
    _add_verbs(top, VERBS, "verb", "VERB")
    return top


def every_verb() -> Iterator[Verb]:
    for verb in VERBS.values():
        yield from (verb, *verb.measures.values())


def _add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb], dest: str, metavar: str) -> None:
    made = parser.add_subparsers(dest=dest, metavar=metavar, required=True)
    for name, verb in verbs.items():
        p = made.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.measures:
            _add_verbs(p, verb.measures, "measure", "MEASURE")
        _add_positionals(p, name, verb)
        if verb.records:
            add_flags(p, verb.records)


def _add_positionals(p: argparse.ArgumentParser, name: str, verb: Verb) -> None:
    if name == "eval":
        p.add_argument("measure", choices=("ppl", "kl", "translate", "prompts", "bias"), help=(
            "perplexity; what was lost against --reference; chrF and BLEU; answers to fifty prompts; CrowS-Pairs"))
    if name == "compare":
        p.add_argument("a", help="file of a result")
        p.add_argument("b", help="file of another, of the same workload")
    if verb.needs_model:
        p.add_argument("model", help=SOURCE if name == "quantize" else "org/name[@revision]")
    elif LoadOptions in verb.records:  # in two spellings: other clients call it --model
        p.add_argument("model", nargs="?", default=argparse.SUPPRESS, help=f"{MODEL}; with --url its name there")
        p.add_argument("--model", help="the same")
    elif EngineConfig in verb.records:
        p.add_argument("model", nargs="?", help=MODEL)
    if name == "quantize":
        p.add_argument("out", help="the directory to make; with several formats each becomes OUT-FORMAT")
        p.add_argument("--calibration", dest="calibration_text", action="extend", nargs="+", metavar="FILE",
                       help="the same as --calibration-text, several at once")


def run(argv: Sequence[str]) -> int:
    """0: done; 1: our fault; 2: what the user asked cannot be done."""
    args = parser().parse_args(argv)
    verb = VERBS[args.verb]
    home = verb.measures[args.measure].home if verb.measures else verb.home
    try:
        return int(import_module(f"gramme.cli.{home}").main(args) or 0)
    except (ConfigError, ModelError, RequestError) as error:
        print(f"gramme: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
