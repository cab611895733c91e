"""`gramme pull`, `list`, `show`, `rm`: models on this machine."""
import argparse
import json
from dataclasses import asdict, replace

from gramme.cli.flags import settle
from gramme.cli.options import OutputOptions
from gramme.config import EngineConfig
from gramme.formats import store
from gramme.kernels.present import available
from gramme.models import layouts
from gramme.models.open import open_model
from gramme.plan.hardware import this_machine
from gramme.plan.planner import plan
from gramme.plan.units import gb


def main(args: argparse.Namespace) -> None:
    {"pull": _pull, "list": _list, "show": _show, "rm": _rm}[args.verb](args)


def _pull(args: argparse.Namespace) -> None:
    print(store.pull(args.model))


def _list(args: argparse.Namespace) -> None:
    models, kept = store.installed(), layouts.installed()
    if settle(args, OutputOptions).json:
        print(json.dumps({"models": [asdict(m) for m in models], "layouts": dict(kept)}))
        return
    for m in models:
        print(f"{m.name}@{m.revision[:12]:12}  {gb(m.nbytes):>10}")
    if not models:
        print("no model in the hub's cache; the embedded one is always there: gramme run")
    for name, nbytes in kept:
        print(f"{name}  {gb(nbytes):>10}  laid-out weights, made again when needed")


def _rm(args: argparse.Namespace) -> None:
    if not layouts.remove(args.model):
        store.remove(args.model)


def _show(args: argparse.Namespace) -> None:
    config = settle(args, EngineConfig)
    opened = open_model(config)
    decided = plan(opened.config, config, replace(this_machine(), backends=available()))
    if settle(args, OutputOptions).json:
        print(json.dumps({"name": opened.name, "model": asdict(opened.config), "plan": asdict(decided)}))
        return
    m = opened.config
    print(f"{opened.name}: {m.family}, {m.parameters / 1e6:.1f} M parameters, {m.layers} layers of width {m.width}, "
          f"{m.heads} heads over {m.kv_heads} of K and V, vocabulary {m.vocab_size}, context {m.max_positions}")
    for note in decided.notes:
        print(f"  {note}")
