"""How decode slows down as its context grows, beside what the bytes of weights, keys and values predict.

    python bench/context.py [--contexts 256,1024,4096,16384]      # writes bench/results/context.json

Steps of one sequence of a Llama of 1.1 G parameters in 4 bits, from the runner down; pages hold zeros, which cost the
same as a prompt's keys and values. `slack` is the growth of the time since the first context over that of the bytes.
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from plan import Copies, repeated

RESULTS = Path(__file__).parent / "results" / "context.json"


def load(kv: str, length: int):
    from gramme.config import EngineConfig
    from gramme.kernels.load import backend
    from gramme.models.dummy import dummy
    from gramme.models.load import build
    from gramme.plan.hardware import this_machine
    from gramme.plan.planner import plan
    from gramme.runtime.runner import Runner

    m = replace(dummy("1b"), max_positions=length)
    config = EngineConfig(model="dummy:1b", dtype="int4", backend="cpu", kv_cache_dtype=kv, max_model_len=length,
                          kv_tokens=length, max_num_seqs=1, max_num_batched_tokens=64)
    decided = plan(m, config, replace(this_machine(), backends=("cpu",)))
    kernels = backend("cpu", decided.threads)
    built = build(m, repeated(m), kernels, "int4", length, kept=Copies())
    return m, decided, Runner(m, decided, built, kernels)


def step_seconds(m, decided, runner, context: int, steps: int) -> float:
    """Median seconds of a step whose token sees `context` tokens, itself included."""
    from gramme.core.batch import Batch, Row
    from gramme.core.sequence import Sequence
    from gramme.request import SamplingParams
    from gramme.runtime.sampler import Chooser

    seq = Sequence(id="one", tokens=[1] * context, max_tokens=1)
    seq.pages = list(range(1, 1 + -(-context // decided.page_size)))
    batch, times = Batch((Row(seq, context - 1, (1,), True),)), []
    chooser = Chooser(SamplingParams(temperature=0), 0, 0, frozenset(), m.vocab_size)
    for _ in range(steps + 2):
        began = time.perf_counter()
        runner.collect(runner.launch(batch, [chooser], [None], None))
        times.append(time.perf_counter() - began)
    return median(times[2:])


def main() -> None:
    from gramme.bench.ceilings import read_bandwidth
    from gramme.plan import cost
    from gramme.plan.hardware import cpu_name

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--contexts", default="256,1024,4096,16384")
    p.add_argument("--steps", type=int, default=12)
    a = p.parse_args()
    contexts, rows = [int(n) for n in a.contexts.split(",")], []
    for kv in ("float16", "int8"):
        m, decided, runner = load(kv, max(contexts) + 16)
        rate, first = read_bandwidth(decided.threads), None
        for context in contexts:
            seconds = step_seconds(m, decided, runner, context, a.steps)
            nbytes = cost.decode(m, cost.weights(m, "int4"), kv, [context]).nbytes
            first = first or (seconds, nbytes)
            slack = seconds / first[0] / (nbytes / first[1])
            rows.append({"kv": kv, "context": context, "tokens_s": 1 / seconds, "bytes": nbytes,
                         "share_of_bandwidth": nbytes / seconds / rate, "kept": first[0] / seconds,
                         "bytes_keep": first[1] / nbytes, "slack": slack})
            print(f"{kv:8} {context:6} tokens {1 / seconds:7.1f} tokens/s, {nbytes / seconds / 1e9:5.1f} of "
                  f"{rate / 1e9:.1f} GB/s; keeps {first[0] / seconds:.0%}, bytes allow {first[1] / nbytes:.0%}, "
                  f"slack {slack:.2f}", flush=True)
        rows[-1]["gb_s_probed"] = rate / 1e9
        del runner
    record = {"bench": "context", "model": "1b int4", "machine": cpu_name(), "threads": decided.threads, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
