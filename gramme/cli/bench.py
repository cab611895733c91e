"""`gramme bench run`: measures, prints a table, ends with one line of JSON."""
import argparse
import json
from dataclasses import replace

from gramme.cli.flags import settle
from gramme.cli.options import BenchOptions
from gramme.config import ConfigError, EngineConfig
from gramme.kernels.present import available
from gramme.plan.hardware import this_machine
from gramme.plan.receipts import Entry, Power, per_million, said
from gramme.plan.units import gb, parse_price, parse_watts


def main(args: argparse.Namespace) -> None:
    from gramme.bench.run import bench, line, record, tests
    from gramme.kernels.load import machine
    from gramme.llm.engine import Engine

    asked = settle(args, BenchOptions)
    if not 1 <= asked.repeats <= 1000:
        raise ConfigError(f"--repeats must be from 1 to 1000, not {asked.repeats}")
    config = replace(settle(args, EngineConfig), skip_tokenizer_init=True, prefix_caching=False)
    million(config, 0.0)  # found to be wrong now rather than at the end
    engine = Engine.load(config)
    engine.hold()  # as a server does before it says ready: what is predicted is what is taken then
    hardware = machine(engine.plan.backend, replace(this_machine(), backends=available()))
    results = []
    for result in bench(engine, hardware, tests(), asked.repeats, asked.calibration):
        print(line(result, hardware.source), flush=True)
        results.append(result)
    memory = {"predicted_bytes": engine.plan.ledger.total, "measured_bytes": engine.taken_bytes}
    predicted, took = memory.values()
    print(f"memory   predicted {gb(predicted)} at most, took {gb(took)} ({took / predicted - 1:+.0%})")
    for r in results:
        print(f"{r.test:8} a million tokens cost {said(million(config, 1 / r.tokens_per_s))}")
    print(json.dumps(record(results, config.model or "gramme-nano", hardware, engine.plan, memory)))


def million(config: EngineConfig, seconds_per_token: float) -> Entry:
    """What a million tokens cost, by the power and the price that were declared. Raises ConfigError."""
    power = Power() if config.power is None else Power(watts=parse_watts(config.power), source="declared")
    price = None if config.price is None else parse_price(config.price)
    if price is not None and price.unit == "kWh" and power.watts is None:
        raise ConfigError("--price a kWh needs --power, such as 65W")
    return per_million(seconds_per_token, power, price)
