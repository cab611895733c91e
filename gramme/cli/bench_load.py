"""What `bench serve` and `bench sweep` share: the flags made into a workload and a server that is ready."""
import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from gramme import __version__
from gramme.bench import workload as loads
from gramme.bench.client import target
from gramme.bench.load import Tally
from gramme.bench.serve import Subject, prepare
from gramme.bench.server import serving
from gramme.bench.workload import Workload
from gramme.cli.flags import options
from gramme.cli.options import LoadOptions
from gramme.config import ConfigError, EngineConfig
from gramme.plan.hardware import this_machine
from gramme.plan.units import gb, ms, parse_seconds

OF_THE_CLIENT = ("tokenizer", "price", "power")  # engine's flags that mean something beside --url too
DEFAULT_WINDOW, DEFAULT_RATE, DEFAULT_AT_ONCE, DEFAULT_PROMPT, DEFAULT_OUTPUT = "30s", 1.0, 100, 256, 64


def workload(asked: LoadOptions, rate: float | None, time_scale: float | None = None) -> Workload:
    """Raises ConfigError where flags contradict each other."""
    for name in ("requests", "prompt_tokens", "output_tokens"):
        value = getattr(asked, name)
        if value is not None and not 1 <= value <= loads.MOST_TOKENS:
            raise ConfigError(f"--{name.replace('_', '-')} must be from 1 to {loads.MOST_TOKENS}, not {value}")
    return _trace(asked, rate, time_scale) if asked.trace else _poisson(asked, rate, time_scale)


def _trace(asked: LoadOptions, rate: float | None, time_scale: float | None) -> Workload:
    if rate is not None and time_scale is not None:
        raise ConfigError("--rate and --time-scale exclude each other")
    w = loads.trace(Path(asked.trace or ""), asked.requests or loads.MOST_REQUESTS)
    if rate is not None:
        w = loads.at_rate(w, rate)
    elif time_scale is not None:
        w = loads.stretched(w, time_scale)
    if asked.duration is not None:
        w = loads.shortened(w, parse_seconds(asked.duration))
    return loads.resized(w, asked.length_scale, asked.prompt_tokens, asked.output_tokens)


def _poisson(asked: LoadOptions, rate: float | None, time_scale: float | None) -> Workload:
    if time_scale is not None or asked.length_scale != 1.0:
        raise ConfigError("--time-scale and --length-scale need --trace")
    rate = DEFAULT_RATE if rate is None else rate
    window_s, most = parse_seconds(asked.duration or DEFAULT_WINDOW), asked.requests or loads.MOST_REQUESTS
    if math.isinf(rate):
        most = asked.requests or DEFAULT_AT_ONCE
    elif rate > 0 and rate * window_s > 2 * loads.MOST_REQUESTS and asked.requests is None:
        raise ConfigError(f"{rate:g} requests a second for {window_s:g} s are more than {loads.MOST_REQUESTS}")
    return loads.poisson(rate, window_s, most, asked.prompt_tokens or DEFAULT_PROMPT,
                         asked.output_tokens or DEFAULT_OUTPUT, asked.load_seed)


Named = dict[str, str]  # a server as a record names it


@contextmanager
def subject(args: argparse.Namespace, config: EngineConfig, asked: LoadOptions) -> Iterator[tuple[Subject, Named]]:
    """A server that is ready, gramme's own unless --url names one, and what is to be said of it."""
    extra, limit_s = _extra(asked.extra_body), parse_seconds(asked.timeout)
    if asked.url is not None:
        given = [name for name in options(EngineConfig) if getattr(args, name, None) is not None]
        if foreign := [name for name in given if name not in OF_THE_CLIENT]:
            raise ConfigError(f"--{foreign[0].replace('_', '-')} is for gramme's own server, --url names another")
        made = prepare(target(asked.url, asked.api_key), config.model or None, asked.endpoint, extra, limit_s,
                       _count(config, asked))
        yield made, {"server": asked.url, "model": made.model}
        return
    if asked.api_key is not None:
        raise ConfigError("--api-key is for the server that --url names")
    flags = engine_flags(config)
    said = [config.model] if config.model else []
    with serving([*said, *flags]) as url:
        made = prepare(target(url), None, asked.endpoint, {"return_token_ids": True} | extra, limit_s)
        yield made, {"server": f"gramme {__version__}", "model": made.model, "flags": " ".join(flags)}


def engine_flags(config: EngineConfig) -> list[str]:
    """The flags of `gramme serve` that say what differs from the defaults."""
    given = {f.name: getattr(config, f.name) for f in fields(config) if f.name in options(EngineConfig)
             and getattr(config, f.name) != f.default}
    flags = {name: "--" + name.replace("_", "-") for name in given}
    return [word for name, value in given.items() for word in (
        ([flags[name]] if value else ["--no" + flags[name][1:]]) if isinstance(value, bool)
        else [flags[name], str(value)])]


def about(now: datetime) -> dict[str, Any]:
    """When, and on what machine the client ran: the server's too, where it is local."""
    machine = this_machine()
    return {"date": now.isoformat(timespec="seconds"), "machine": {"name": machine.name, "cores": machine.cores}}


def progress(label: str) -> Callable[[Tally], None]:
    """A line on standard error that is written again and again, where somebody can see it."""
    def tell(t: Tally) -> None:
        line = (f"{label} {t.elapsed_s:5.1f} s  {t.sent} of {t.all} sent, {t.sent - t.done} open, {t.done} done, "
                f"{t.failed} failed, {t.tokens} tokens")
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:{width}}", end="\n" if t.ended else "", file=sys.stderr, flush=True)

    return tell if sys.stderr.isatty() else lambda tally: None


def save(path: Path, text: str) -> None:
    """All or nothing. Raises ConfigError."""
    try:
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def end_orderly() -> None:
    """Ctrl-C and a request to end become exceptions, so that a server that was started is ended too."""
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)


def lines(r: dict[str, Any]) -> Iterator[str]:
    """A run for people."""
    w, client = r["workload"], r["client"]
    yield (f"{r['completed']} of {w['requests']} requests answered in {r['duration']:.1f} s, {r['failed']} failed; "
           f"offered {r['offered_rate'] or math.inf:.4g}/s, {w['prompt_tokens']:.4g} tokens in and "
           f"{w['output_tokens']:.4g} out on average" + (" (interrupted)" if r["interrupted"] else ""))
    for kind, n in r["failures"].items():
        yield f"  {n} x {kind}: {r['failure_examples'][kind]}".rstrip(": ")
    yield (f"throughput {r['request_throughput']:.3f} requests/s, {r['output_throughput']:.1f} output tokens/s, "
           f"{r['total_token_throughput']:.1f} tokens/s in all")
    if w["slo"]:
        yield (f"goodput    {r['request_goodput']:.3f} requests/s, {r['goodput_share'] or 0.0:.1%} of what was offered "
               f"within " + ", ".join(f"{k} {v:g} ms" for k, v in w["slo"].items()))
    yield f"{'ms':10} {'mean':>9} {'median':>9} {'p90':>9} {'p99':>9} {'max':>9}"
    for name, values in (("TTFT", r), ("TPOT", r), ("ITL", r), ("E2EL", r), ("lag", client)):
        found = [values[f"{which}_{name.lower()}_ms"] for which in ("mean", "median", "p90", "p99", "max")]
        yield f"{name:10} {_row(found)}" + ("  of the client, in the others too" if name == "lag" else "")
    yield from _doubts(r)


def checked(predictions: Mapping[str, Any]) -> Iterator[str]:
    """Predicted beside measured."""
    names = {"memory": "memory", "prefill": "prompt", "decode": "a token", "ttft": "TTFT"}
    for name, found in predictions.items():
        predicted, took = (gb(found[f"{which}_bytes"]) if name == "memory" else ms(found[f"{which}_ms"] / 1e3)
                           for which in ("predicted", "measured"))
        more = f"; off by {found['distance']:.0%} at the median" if name == "ttft" else ""
        yield f"{names[name]:10} predicted {predicted}, took {took} ({found['error']:+.0%}){more}"


def _doubts(r: dict[str, Any]) -> Iterator[str]:
    if r["prompt_tokens_off"]:
        yield f"note: {r['prompt_tokens_off']} prompts had another number of tokens than asked"
    if r["output_tokens_off"]:
        yield f"note: {r['output_tokens_off']} answers had another number of tokens than asked"
    if r["answers_without_usage"]:
        yield f"note: {r['answers_without_usage']} answers came without usage: their tokens are chunks"
    if r["client"]["cpu_share"] > 0.8:
        yield f"note: the client itself used {r['client']['cpu_share']:.0%} of a core"


def _row(values: Sequence[float | None]) -> str:
    return " ".join(f"{'':>9}" if v is None else f"{v:9.2f}" for v in values)


def _extra(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"--extra-body must be a JSON object, not {text!r:.60}")
    return found


def _count(config: EngineConfig, asked: LoadOptions) -> Callable[[str], int] | None:
    """By --tokenizer, what a server without usage would count."""
    if config.tokenizer is None:
        return None
    if asked.endpoint == "chat":
        raise ConfigError("--tokenizer does not know the server's chat template: it needs --endpoint completions")
    from gramme.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(config.tokenizer))
    return lambda text: len(tokenizer.encode(text))
