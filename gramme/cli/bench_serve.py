"""`gramme bench serve`: one load on one server; prints a table, ends with one line of JSON."""
import argparse
import json
from datetime import datetime
from pathlib import Path

from gramme.bench.latency import parse_slo
from gramme.bench.serve import measure, predictions
from gramme.cli.bench import million
from gramme.cli.bench_load import about, checked, end_orderly, lines, progress, save, subject, workload
from gramme.cli.flags import settle
from gramme.cli.options import LoadOptions, ServeBenchOptions
from gramme.config import EngineConfig
from gramme.plan.receipts import said
from gramme.plan.units import parse_seconds


def main(args: argparse.Namespace) -> int:
    config, asked, own = settle(args, EngineConfig), settle(args, LoadOptions), settle(args, ServeBenchOptions)
    slo, limit_s, load = parse_slo(asked.slo), parse_seconds(asked.timeout), workload(asked, own.rate, own.time_scale)
    million(config, 0.0)  # found to be wrong now rather than after the load
    if own.out is not None:
        save(Path(own.out), "")  # likewise
    end_orderly()
    try:
        with subject(args, config, asked) as (server, named):
            made = measure(server, load, slo, limit_s, asked.load_seed, progress(named["model"]))
            ours = asked.url is None and not made["interrupted"]
            made["predictions"] = predictions(server, limit_s) if ours else None
    except KeyboardInterrupt:  # before anything was sent
        return 130
    tokens = made["total_input_tokens"] + made["total_output_tokens"]
    cost = million(config, made["duration"] / tokens) if tokens else None
    made["cost_per_million_tokens"] = cost and cost.money
    record = {"bench": "serve", **about(datetime.now()), "subject": named, **made}
    for line in lines(made):
        print(line)
    if cost:
        print(f"a million tokens, prompts and answers, cost {said(cost)}")
    for line in checked(made["predictions"] or {}):
        print(line)
    text = json.dumps(record)
    if own.out is not None:
        save(Path(own.out), text + "\n")
    print(text)
    return 130 if made["interrupted"] else 0
