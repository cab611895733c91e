"""`gramme pull`, `list`, `show`, `rm`: models on this machine."""
import argparse
import json
from dataclasses import asdict

from gramme.cli.flags import settle
from gramme.cli.options import OutputOptions
from gramme.config import EngineConfig, Plan
from gramme.formats import store
from gramme.kernels.load import backend
from gramme.kernels.present import foreseen
from gramme.llm.energy import power
from gramme.llm.report import Facts, Loaded, found, report, text
from gramme.models import layouts
from gramme.models.open import Opened, open_model
from gramme.plan.planner import plan
from gramme.plan.units import gb
from gramme.request import EngineStats


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
    decided = plan(opened.config, config, foreseen(config.backend))
    drawn = power(decided).power
    stats = EngineStats(watts=drawn.watts, power_source=drawn.source)
    lines = report(Facts(config, opened.config, decided, _foreseen(config, opened, decided), stats))
    if settle(args, OutputOptions).json:
        print(json.dumps({"name": opened.name, "model": asdict(opened.config), "plan": asdict(decided),
                          "report": [asdict(e) for e in lines]}))
        return
    m = opened.config
    print(f"{opened.name}: {m.family}, {m.parameters / 1e6:.1f} M parameters, {m.layers} layers of width {m.width}, "
          f"{m.heads} heads over {m.kv_heads} of K and V, vocabulary {m.vocab_size}, context {m.max_positions}")
    for line in (*decided.notes, *text(lines)):
        print(f"  {line}")


def _foreseen(config: EngineConfig, opened: Opened, decided: Plan) -> Loaded:
    """What loading would find, as far as that is known before it. PyTorch is not imported for it."""
    if decided.backend not in ("cpu", "reference"):
        return Loaded(layout_why="laid out on the device at each start", records=decided.backend == "cuda")
    kernels = backend(decided.backend, decided.threads)
    why = layouts.refusal(opened.files, kernels, decided.ledger.weights) if config.layout_cache else "--no-layout-cache"
    if why:
        return found(kernels, layout_why=why)
    there = layouts.layout_path(opened.name, opened.files, decided.dtype).exists()
    return found(kernels, layout="mapped" if there else "written")
