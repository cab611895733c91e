"""The command line: which verbs there are. Each verb's work stands in a file of its own, imported when it is chosen."""
import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gramme.cli.flags import add_flags
from gramme.config import ConfigError, EngineConfig, ModelError
from gramme.request import RequestError
from gramme.serve.options import ServeOptions

VERBS = {
    "run": "answer one prompt, or continue it",
    "chat": "hold a conversation in the terminal",
    "serve": "answer over HTTP, in the form of OpenAI's API",
    "eval": "measure a model on texts, alone (ppl) or beside a reference (kl)",
    "pull": "fetch a model from the hub",
    "list": "the models on this machine",
    "show": "what a model is and what it would take",
    "rm": "remove a model from the hub's cache",
    "doctor": "what this machine has and which kernels would run",
}
HOMES = {"pull": "models", "list": "models", "show": "models", "rm": "models"}
MODEL = ("a directory, a GGUF file, a hub id such as org/name[@revision] or org/name-GGUF:Q4_K_M, or dummy:SHAPE; "
         "nothing means the embedded model")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="gramme", allow_abbrev=False, description=(
        "Run open-weight language models on hardware you own. Every flag is also GRAMME_FLAG in the environment."))
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    made = {name: verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
            for name, text in VERBS.items()}
    for name in ("run", "chat", "serve", "show"):
        made[name].add_argument("model", nargs="?", default=os.environ.get("GRAMME_MODEL", ""), help=MODEL)
        add_flags(made[name], EngineConfig, *([ServeOptions] if name == "serve" else []))
    _run_flags(made["run"])
    _sampling_flags(made["chat"])
    _eval_flags(made["eval"])
    for name in ("pull", "rm"):
        made[name].add_argument("model", help="org/name[@revision], org/name-GGUF:Q4_K_M")
    for name in ("list", "show", "doctor"):
        made[name].add_argument("--json", action="store_true", help="one line of JSON")
    return top


def run(argv: Sequence[str]) -> int:
    """0: done; 1: our fault; 2: what the user asked cannot be done; 130: interrupted."""
    args = parser().parse_args(argv)
    try:
        return int(import_module(f"gramme.cli.{HOMES.get(args.verb, args.verb)}").main(args) or 0)
    except (ConfigError, ModelError, RequestError) as error:
        print(f"gramme: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("-p", "--prompt", help="the prompt; default: standard input, or an example for the embedded model")
    p.add_argument("--raw", action="store_true", help="continue the prompt as it stands, without the chat template")
    p.add_argument("--json", action="store_true", help="no streaming; end with one line of JSON")
    _sampling_flags(p)


def _sampling_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("-n", "--max-tokens", type=int, help="most tokens to generate; default: the rest of the context")
    p.add_argument("--temperature", type=float, help="0: always the most probable token")
    p.add_argument("--top-p", type=float)
    p.add_argument("--top-k", type=int)
    p.add_argument("--min-p", type=float)
    p.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the end of the answer")


def _eval_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("measure", choices=("ppl", "kl"), help="perplexity, or what was lost against --reference")
    p.add_argument("model", nargs="?", default=os.environ.get("GRAMME_MODEL", ""), help=MODEL)
    add_flags(p)
    p.add_argument("--reference", help="the model that is right, in float32; default: MODEL itself in float32")
    p.add_argument("--text", action="append", metavar="[NAME:]FILE",
                   help="a text to measure on, as often as wanted; default: French and English novels and sentences")
    p.add_argument("--window", type=int, help="tokens that are run together; default: 2048 or the model's context")
    p.add_argument("--stride", type=int, help="tokens between windows; default: the window, as in the GPTQ paper")
    p.add_argument("--json", action="store_true", help="one line of JSON")


def sampling_given(args: argparse.Namespace) -> dict[str, object]:
    """The sampling flags that were given."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "ignore_eos")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


