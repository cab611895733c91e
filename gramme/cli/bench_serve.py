"""`gramme bench serve`: one load on one server; prints a table, ends with one line of JSON."""
import argparse
import json
from datetime import datetime
from pathlib import Path

from gramme.bench.latency import parse_slo
from gramme.bench.serve import measure
from gramme.cli.bench import power
from gramme.cli.bench_load import about, end_orderly, lines, progress, save, subject, workload
from gramme.cli.flags import settle
from gramme.cli.options import LoadOptions, ServeBenchOptions
from gramme.config import EngineConfig
from gramme.plan.receipts import bill, per_million
from gramme.plan.units import parse_price, parse_seconds


def main(args: argparse.Namespace) -> int:
    config, asked, own = settle(args, EngineConfig), settle(args, LoadOptions), settle(args, ServeBenchOptions)
    slo, price, draws = parse_slo(asked.slo), config.price and parse_price(config.price), power(config)
    load, limit_s = workload(asked, own.rate, own.time_scale), parse_seconds(asked.timeout)
    if own.out is not None:
        save(Path(own.out), "")  # found to be impossible now rather than after the load
    end_orderly()
    try:
        with subject(args, config, asked) as (server, said):
            made = measure(server, load, slo, limit_s, asked.load_seed, progress(said["model"]))
    except KeyboardInterrupt:  # before anything was sent
        return 130
    tokens = made["total_input_tokens"] + made["total_output_tokens"]
    a_token_s = made["duration"] / tokens if tokens else 0.0
    made["cost_per_million_tokens"] = bill(1e6 * a_token_s, draws, price or None).money if tokens else None
    record = {"bench": "serve", **about(datetime.now()), "subject": said, **made}
    for line in lines(made):
        print(line)
    if tokens:
        print(f"a million tokens, prompts and answers, cost {per_million(a_token_s, draws, price or None)}")
    text = json.dumps(record)
    if own.out is not None:
        save(Path(own.out), text + "\n")
    print(text)
    return 130 if made["interrupted"] else 0
