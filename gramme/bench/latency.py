"""What a load gave, in vLLM's names (`vllm bench serve`): throughputs, goodput, latencies. Outcomes in, numbers out.

TPOT is of an answer, ITL of the gaps between chunks. Latencies are of the requests that were answered; what failed is
counted by kind and is never good.
"""
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gramme.bench.load import INTERRUPTED, Outcome, Run
from gramme.config import ConfigError
from gramme.plan.units import parse_seconds

LIMITED = ("ttft", "tpot", "e2el")
PERCENTILES = (90, 99)

Slo = dict[str, float]  # the longest time, in seconds, by name


def parse_slo(text: str | None) -> Slo:
    """"ttft:100,tpot:20" -> seconds. Milliseconds, as vLLM has it, unless a unit is said. Raises ConfigError."""
    slo: Slo = {}
    for part in text.split(",") if text else ():
        name, _, limit = part.partition(":")
        if (name := name.strip()) not in LIMITED or name in slo or not limit.strip():
            raise ConfigError(f"--slo must be such as ttft:100,tpot:20, of {', '.join(LIMITED)}, not {text!r:.60}")
        slo[name] = parse_seconds(limit + "ms" if limit.strip()[-1] in "0123456789." else limit)
    return slo


def good(o: Outcome, slo: Slo) -> bool:
    """Answered within every limit; an answer of one token has no TPOT to be too long."""
    if o.failure is not None:
        return False
    took = {"ttft": o.ttft_s, "tpot": o.tpot_s or 0.0, "e2el": o.e2el_s}
    return all(took[name] <= limit for name, limit in slo.items())


def summary(run: Run, window_s: float, slo: Slo) -> dict[str, Any]:
    """`window_s`: in which the requests were to be sent. Requests that an interrupt cut off count as not sent."""
    judged = [o for o in run.outcomes if o.failure != INTERRUPTED]
    done = [o for o in judged if o.failure is None]
    prompt, output = sum(o.prompt_tokens for o in done), sum(o.output_tokens for o in done)
    n_good, seconds = sum(good(o, slo) for o in judged), run.duration_s
    window_s = min(window_s, seconds) if run.interrupted else window_s
    return {
        "duration": seconds, "completed": len(done), "failed": len(judged) - len(done),
        "failures": dict(Counter(o.failure for o in run.outcomes if o.failure is not None)),
        "total_input_tokens": prompt, "total_output_tokens": output,
        "offered_rate": len(judged) / window_s if window_s else None,
        "request_throughput": len(done) / seconds, "output_throughput": output / seconds,
        "total_token_throughput": (prompt + output) / seconds,
        "request_goodput": n_good / seconds, "goodput_share": n_good / len(judged) if judged else None,
        **spread("ttft", [o.ttft_s for o in done]),
        **spread("tpot", [o.tpot_s for o in done if o.tpot_s is not None]),
        **spread("itl", [gap for o in done for gap in o.gaps_s]),
        **spread("e2el", [o.e2el_s for o in done]),
        "prompt_tokens_off": sum(o.has_usage and o.prompt_tokens != o.ask.prompt_tokens for o in done),
        "output_tokens_off": sum(o.output_tokens != o.ask.output_tokens for o in done),
        "answers_without_usage": sum(not o.has_usage for o in done),
        "client": {**spread("lag", [o.lag_s for o in judged]), "cpu_share": run.cpu_s / seconds},
    }


def spread(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """mean_, median_, std_, p90_, p99_ and max_NAME_ms; None where nothing was measured."""
    names = [f"{which}_{name}_ms" for which in ("mean", "median", "std", *(f"p{p}" for p in PERCENTILES), "max")]
    if not seconds:
        return dict.fromkeys(names)
    ms = 1e3 * np.asarray(seconds)
    values = [ms.mean(), np.median(ms), ms.std(), *np.percentile(ms, PERCENTILES), ms.max()]
    return {name: float(value) for name, value in zip(names, values)}


def each(run: Run) -> dict[str, list[float | None]]:
    """Milliseconds of every request in order of arrival, None where it failed: `compare` reads these."""
    ms = lambda s: None if s is None else round(1e3 * s, 3)
    answered = lambda o, s: None if o.failure else ms(s)
    return {f"{name}_ms": [answered(o, getattr(o, f"{name}_s")) for o in run.outcomes] for name in LIMITED}
