"""`gramme bench run`: measures, prints a table, ends with one line of JSON."""
import argparse
import json
from dataclasses import replace

from gramme.cli.flags import settle
from gramme.cli.options import BenchOptions
from gramme.config import ConfigError, EngineConfig
from gramme.kernels.present import available
from gramme.plan.hardware import this_machine
from gramme.plan.units import gb


def main(args: argparse.Namespace) -> None:
    asked = settle(args, BenchOptions)
    {"run": _run}[args.measure](args, asked)


def _run(args: argparse.Namespace, asked: BenchOptions) -> None:
    from gramme.bench.run import bench, line, record, resident_bytes, tests
    from gramme.llm.engine import Engine

    if not 1 <= asked.repeats <= 1000:
        raise ConfigError(f"--repeats must be from 1 to 1000, not {asked.repeats}")
    before = resident_bytes()
    config = replace(settle(args, EngineConfig), skip_tokenizer_init=True, prefix_caching=False)
    engine = Engine.load(config)
    hardware = replace(this_machine(), backends=available())
    results = []
    for result in bench(engine, hardware, tests(), asked.repeats, asked.calibration):
        print(line(result), flush=True)
        results.append(result)
    memory = {"predicted_bytes": engine.plan.ledger.total, "measured_bytes": resident_bytes() - before}
    print(f"memory   predicted {gb(memory['predicted_bytes'])} at most, took {gb(memory['measured_bytes'])}")
    print(json.dumps(record(results, hardware, engine.plan, memory)))
