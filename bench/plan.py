"""How right the planner is: predicted against measured memory, TTFT and TPOT, in pairs with the ceilings of the moment.

    python bench/plan.py dummy:1b int4 pp64,pp256,tg16,tg16x4        # measures, adds to bench/results/plan.json
    python bench/plan.py --plot                                      # draws bench/results/plan.png, prints the table

A point is pp<prompt tokens> (time to the first token) or tg<tokens>[x<batch>][@<prompt>] (time per output token). Each
pair probes memory and arithmetic, then measures once; the prediction is rescaled by that probe. Weights are random, one
layer's repeated, so that a 7b is there in a minute; every layer has memory of its own.
"""
import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "plan.json"


def test(point):
    from gramme.bench.run import Test

    if not (match := re.fullmatch(r"(pp|tg)(\d+)(?:x(\d+))?(?:@(\d+))?", point)):
        raise SystemExit(f"{point}: a point is pp256, tg16, tg16x4 or tg16@1024")
    kind, n, batch, prompt = match[1], int(match[2]), int(match[3] or 1), int(match[4] or 16)
    return Test(name=point, prompt=n if kind == "pp" else prompt, answer=n if kind == "tg" else 0, batch=batch)


def repeated(m, dtype):
    """A source that makes each kind of matrix once."""
    from gramme.config import INTEGER_BITS, INTEGER_GROUP
    from gramme.models.load import random_source
    from gramme.quant.rounding import round_to_nearest

    random, made = random_source(m), {}

    def source(name):
        kind = re.sub(r"layers\.\d+", "layers.0", name)
        if kind not in made:
            made[kind] = random(kind)
            if dtype in INTEGER_BITS and made[kind].ndim == 2:
                made[kind] = round_to_nearest(made[kind], INTEGER_BITS[dtype], INTEGER_GROUP)
        return made[kind]

    return source


def load(model, dtype, length):
    """An engine, the bytes it took, and the machine."""
    from gramme.bench.run import resident_bytes
    from gramme.config import EngineConfig, GenerationDefaults
    from gramme.kernels.load import backend
    from gramme.kernels.present import available
    from gramme.llm.engine import Engine
    from gramme.models.load import build
    from gramme.models.open import open_model
    from gramme.plan.hardware import this_machine
    from gramme.plan.planner import plan
    from gramme.runtime.runner import Runner

    config = EngineConfig(model=model, dtype=dtype, prefix_caching=False, max_model_len=length, max_num_seqs=16,
                          kv_tokens=16 * 256 + length)
    m, hardware = open_model(config).config, replace(this_machine(), backends=available())
    decided = plan(m, config, hardware)
    kernels = backend(decided.backend, decided.threads)
    before = resident_bytes()
    decoder = build(m, repeated(m, dtype), kernels, dtype, decided.max_model_len)
    engine = Engine(m, decided, GenerationDefaults(), Runner(m, decided, decoder, kernels))
    return engine, before, hardware


def fullest(engine, before):
    """Bytes above `before` at the peak of the steps that need most: a whole chunk, all rows, scores of every token."""
    from gramme.request import Request, SamplingParams

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    p, ids = engine.plan, range(engine.model.vocab_size)
    length = min(p.max_batch_tokens, p.max_model_len - 2)
    scored = SamplingParams(max_tokens=1, prompt_logprobs=20, temperature=0)
    engine.add(Request(id="scored", prompt_token_ids=list(ids[:length]), params=scored))
    for i in range(p.max_rows):
        engine.add(Request(id=f"row{i}", prompt_token_ids=[i + 1], params=SamplingParams(max_tokens=12, logprobs=20)))
    while engine.busy:
        engine.step()
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


def probe(hardware, threads):
    from gramme.bench.ceilings import measure

    return replace(hardware, rates=measure(threads, seconds=0.25, disk=False), source="probed")


def pairs(engine, hardware, point, count):
    """Measured over predicted: with the rates on record, and with those probed just before."""
    from gramme.bench.run import judge, measure

    one, rows = test(point), []
    measure(engine, one)
    for _ in range(count):
        probed = probe(hardware, engine.plan.threads)
        seconds = measure(engine, one)
        judged = [judge(engine.model, engine.plan, h, one, [seconds], calibrated=False) for h in (hardware, probed)]
        rows.append({"measured_s": seconds, "unscaled_s": judged[0].predicted_s, "rescaled_s": judged[1].predicted_s,
                     "share": judged[1].share, "bound": judged[1].bound, "rates": probed.rates})
    return {"pairs": rows, "measured_s": median(r["measured_s"] for r in rows),
            "error": median(r["measured_s"] / r["rescaled_s"] for r in rows) - 1,
            "unscaled_error": median(r["measured_s"] / r["unscaled_s"] for r in rows) - 1,
            "share": median(r["share"] for r in rows)}


def run(args):
    points = args.points.split(",")
    length = max(t.prompt + t.answer + 1 for t in map(test, points))
    engine, before, hardware = load(args.model, args.dtype, max(length, 256))
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    entry = found.setdefault(f"{args.model or 'gramme-nano'} {args.dtype}", {"points": {}})
    most = fullest(engine, before)
    for point in points:
        entry["points"][point] = made = pairs(engine, hardware, point, args.pairs)
        print(f"{args.model} {args.dtype} {point:10} {1e3 * made['measured_s']:9.2f} ms  {made['error']:+.0%} of the "
              f"rescaled prediction, {made['unscaled_error']:+.0%} of the unscaled, {made['share']:.0%} of the ceiling",
              flush=True)
    ledger = engine.plan.ledger
    entry["memory"] = {"predicted_bytes": ledger.total, "measured_bytes": most, "error": most / ledger.total - 1}
    print(f"memory: predicted {ledger.total / 1e6:.1f} MB, measured {most / 1e6:.1f} ({most / ledger.total - 1:+.1%})")
    entry["machine"] = {"name": hardware.name, "cores": hardware.cores, "rates": hardware.source}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def plot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(RESULTS.read_text())
    figure, axes = pyplot.subplots(figsize=(6, 6))
    for name, entry in found.items():
        both = [(row["rescaled_s"], row["measured_s"]) for p in entry["points"].values() for row in p["pairs"]]
        axes.loglog(*zip(*both), "o", markersize=3, label=name)
        for point, p in entry["points"].items():
            errors = f"{p['error']:+.0%} | {p['unscaled_error']:+.0%}"
            print(f"| {name} | {point} | {1e3 * p['measured_s']:.2f} | {errors} |")
    low, high = axes.get_xlim()
    axes.loglog([low, high], [low, high], "k-", linewidth=0.8)
    axes.fill_between([low, high], [0.85 * low, 0.85 * high], [1.15 * low, 1.15 * high], color="0.9")
    axes.set_xlabel("predicted seconds, rescaled by the ceilings probed beside")
    axes.set_ylabel("measured seconds: first token, and each further token")
    axes.legend(fontsize=7)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("dtype", nargs="?")
    parser.add_argument("points", nargs="?", default="pp64,pp256,tg16,tg16x4,tg8x16")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    plot() if given.plot else run(given)
