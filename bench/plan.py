"""How right the planner is: predicted against measured memory, TTFT and TPOT, in pairs with the ceilings of the moment.

    gramme doctor --measure                                             # once, on a quiet machine
    python bench/plan.py dummy:1b int4 memory,pp64,pp512,tg1@64,tg16@512  # measures, adds to bench/results/plan.json
    python bench/plan.py --anew                                         # predicts again what is there
    python bench/plan.py --plot                                         # draws bench/results/plan.png, prints the table

A point is pp<prompt tokens> (time to the first token), tg<rows>@<context> (time of a step that makes a token for each
of so many sequences) or memory. Each pair probes memory, arithmetic and how long threads take to meet, then measures
once; "unscaled" is what a plan says from the record of `gramme doctor --measure`, "rescaled" the same with the
record's speeds brought to what was just probed. Nothing is calibrated. Pairs are saved as they come and added to
those that are there, so a run may be cut into pieces; those whose predictions are by an older record are forgotten. A
pair holds all that a prediction needs, so --anew makes those of the present record from it, and "measured_beside"
says which record was there then. It is for kernels that have not changed. Weights are random and every layer is a
copy of the first, with memory of its own. Before tokens are timed, prompts run through the first layer only: what
stands in the other layers' pages does not change how long reading it takes.
"""
import argparse
import json
import os
import platform
import re
import time
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean, median

RESULTS = Path(__file__).parent / "results" / "plan.json"
ROWS = 16  # sequences at most
LEAST, ANSWER, ANSWER_S = 3, 12, 1.5  # steps of a pair, as many as take no longer; their median counts
WARM, WARM_S = 6, 0.05  # steps before them, as far as they take no longer: a probe leaves caches cold
PROBE_S = 0.15


class Copies:
    """Makes each kind of matrix once, and copies of it for the other layers."""

    def __init__(self):
        self.made = {}

    def weight(self, name, bias, make):
        kind = re.sub(r"layers\.\d+", "layers", name)
        if kind not in self.made:
            self.made[kind] = make()
            return self.made[kind]
        weight = self.made[kind]
        return replace(weight, packed=copied(weight.packed), bias=bias)


def copied(packed):
    import numpy as np

    parts = {f.name: getattr(packed, f.name) for f in fields(packed)}
    for name, a in parts.items():
        if isinstance(a, np.ndarray):
            room = np.empty(a.nbytes + 64, np.uint8)
            start = -room.ctypes.data % 64  # a cache line, as it was
            parts[name] = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
            parts[name][...] = a
    return replace(packed, **parts)


def repeated(m):
    """A source whose layers are all the first: for their vectors, and for matrices that are made once."""
    from gramme.models.load import random_source

    random = random_source(m)
    return lambda name: random(re.sub(r"layers\.\d+", "layers.0", name))


def planned(model, dtype, length=None, rows=1):
    """What is opened, its plan, and the machine."""
    from gramme.config import EngineConfig
    from gramme.kernels.present import available
    from gramme.models.open import open_model
    from gramme.plan.hardware import this_machine
    from gramme.plan.planner import plan

    config = EngineConfig(model=model, dtype=dtype, prefix_caching=False, max_model_len=length, max_num_seqs=ROWS,
                          kv_tokens=None if length is None else rows * (length + 16))
    opened, hardware = open_model(config), replace(this_machine(), backends=available())
    return opened, plan(opened.config, config, hardware), hardware


def load(model, dtype, length, rows):
    """An engine, the bytes that the process had without it, and the machine."""
    from gramme.config import GenerationDefaults
    from gramme.kernels.load import backend
    from gramme.llm.engine import Engine
    from gramme.models.load import build
    from gramme.plan.limits import resident_bytes
    from gramme.runtime.runner import Runner

    opened, decided, hardware = planned(model, dtype, length, rows)
    m, kernels = opened.config, backend(decided.backend, decided.threads)
    before = resident_bytes()
    source, kept = (repeated(m), Copies()) if model else (opened.source, None)
    decoder = build(m, source, kernels, decided.dtype, decided.max_model_len, kept=kept)
    engine = Engine(m, decided, GenerationDefaults(), Runner(m, decided, decoder, kernels))
    engine.hold()
    return engine, before, hardware


def fullest(engine, before):
    """Bytes above `before` at the peak of the steps that need most: a whole chunk, all rows, scores of every token, and
    as many shapes of small steps as are recorded."""
    from gramme.request import Request, SamplingParams

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    p, ids = engine.plan, range(engine.model.vocab_size)
    length = min(p.max_batch_tokens, p.max_model_len - 2)

    def run(name, prompt, **params):
        engine.add(Request(id=name, prompt_token_ids=list(ids[:prompt]), params=SamplingParams(**params)))

    run("scored", length, max_tokens=1, prompt_logprobs=20, temperature=0)
    for i in range(p.max_rows):
        run(f"row{i}", 1 + i, max_tokens=4 + i, logprobs=20)
    while engine.busy:
        engine.step()
    for n in [*range(1, 65, 7)] * 3:
        run(f"of {n}", n, max_tokens=1)
        while engine.busy:
            engine.step()
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


class Probe:
    """What the machine allows just now. Its arrays stay: memory that is taken and given back each time costs the system
    work that goes on beside the steps measured next."""

    def __init__(self, kernels, dtype):
        from gramme.bench.ceilings import multiplying_float32, multiplying_int8, reading
        from gramme.bench.speeds import replaying
        from gramme.plan.speeds import REPLAYS

        floats = dtype in ("bfloat16", "float16", "float32")
        self.works = {"bandwidth": reading(kernels), **(
            {"float32": multiplying_float32(kernels)} if floats else {"int8": multiplying_int8(kernels)}),
            REPLAYS: replaying(kernels.device.kernels.pool.threads)}

    def rates(self):
        """Bytes/s and operations/s, by the planner's names."""
        return {name: work.rate(PROBE_S) for name, work in self.works.items()}


def rescaled(hardware, probed):
    """The machine with the speeds of its record brought to what it allows just now, as `speeds.brought` says, and a
    layer's calls with what it takes threads to meet."""
    from gramme.plan import speeds

    old = hardware.rates
    arithmetic = next(rate / old[name] for name, rate in probed.items() if name in ("int8", "float32"))
    meeting_s = 1 / probed[speeds.REPLAYS] - 1 / old[speeds.REPLAYS]
    layer = {speeds.LAYER: 1 / max(1 / old[speeds.LAYER] + meeting_s, 1e-8)}
    return replace(hardware, rates=speeds.brought(old, probed["bandwidth"], arithmetic) | layer)


class Prompts:
    """The time to a first token of one prompt after the other. Each is a token shorter than the one before, as prompts
    differ: none finds a step of its shape recorded."""

    def __init__(self, engine, tokens, done):
        self.engine, self.tokens = engine, tokens - done
        if tokens <= 1024:  # of another length, which no pair has
            self.measure(tokens // 2)

    def measure(self, tokens):
        from gramme.bench.run import Test, measure

        return measure(self.engine, Test(name=f"pp{tokens}", prompt=tokens))

    def timed(self):
        """Tokens and seconds."""
        self.tokens -= 1
        return self.tokens + 1, self.measure(self.tokens + 1)

    def close(self):
        pass


class Tokens:
    """Steps of so many sequences in contexts of about `context` tokens."""

    def __init__(self, engine, rows, context):
        from gramme.request import Request, SamplingParams

        self.engine, runner = engine, engine.runner
        params = SamplingParams(temperature=0, max_tokens=engine.plan.max_model_len, ignore_eos=True)
        whole, runner.decoder = runner.decoder, replace(runner.decoder, layers=runner.decoder.layers[:1])
        begun = set()
        for i in range(rows):
            ids = [(7 * i + k) % engine.model.vocab_size for k in range(context)]
            engine.add(Request(id=f"row{i}", prompt_token_ids=ids, params=params))
        while len(begun) < rows:
            begun |= {u.id for u in engine.step() if u.token_ids}
        runner.decoder = whole
        self.warm()

    def warm(self):
        end = time.perf_counter() + WARM_S
        for _ in range(WARM):
            if time.perf_counter() < end:
                self.engine.step()

    def timed(self):
        """Tokens of each context, and seconds."""
        self.warm()
        times = []
        while len(times) < LEAST or (len(times) < ANSWER and sum(times) < ANSWER_S):
            began = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - began)
        return round(mean(len(seq.tokens) for seq in self.engine.scheduler.running)) - len(times) // 2, median(times)

    def close(self):
        for i in range(ROWS):
            self.engine.abort(f"row{i}")
        while self.engine.busy:
            self.engine.step()


def parsed(point):
    """(kind, rows, tokens)"""
    if match := re.fullmatch(r"pp(\d+)", point):
        return "pp", 1, int(match[1])
    if match := re.fullmatch(r"tg(\d+)@(\d+)", point):
        return "tg", int(match[1]), int(match[2])
    raise SystemExit(f"{point}: a point is pp256, tg4@1024 or memory")


def pair(m, p, hardware, point, tokens, seconds, rates):
    """What was measured beside what is predicted for it."""
    from gramme.plan import check

    kind, rows, _ = parsed(point)
    plain, then = (check.prefill(m, p, h, tokens, seconds, calibrated=False) if kind == "pp" else
                   check.decode(m, p, h, [tokens] * rows, seconds, calibrated=False)
                   for h in (hardware, rescaled(hardware, rates)))
    return {"tokens": tokens, "measured_s": seconds, "unscaled_s": plain.plain_s, "rescaled_s": then.plain_s,
            "share": then.bottleneck.floor_s / seconds, "bound": then.bottleneck.bound, "rates": rates}


def summary(pairs):
    out = {"pairs": pairs, "measured_s": median(r["measured_s"] for r in pairs),
           "share": median(r["share"] for r in pairs)}
    for name in ("rescaled", "unscaled"):
        out[f"{name}_error"] = median(r["measured_s"] / r[f"{name}_s"] for r in pairs) - 1
    return out


def most_tokens(model):
    from gramme.config import EngineConfig
    from gramme.models.open import open_model

    return open_model(EngineConfig(model=model)).config.max_positions


def run(args):
    points = args.points.split(",")
    timed = {p: parsed(p) for p in points if p != "memory"}
    room = {p: n + (0 if kind == "pp" else ROWS * n // 512 + WARM + (ANSWER + WARM) * args.pairs)
            for p, (kind, _, n) in timed.items()}
    name = f"{args.model} {args.dtype}" if args.model else "gramme-nano"
    length = min(most_tokens(args.model), max(256, 10 + max(room.values(), default=0)))
    engine, before, hardware = load(args.model, args.dtype, length, max([1, *(rows for _, rows, _ in timed.values())]))
    begun_s, save = time.monotonic(), lambda key, value: saved(name, key, value, hardware)
    if "memory" in points:
        most, ledger = fullest(engine, before), engine.plan.ledger
        save("memory", {"predicted_bytes": ledger.total, "measured_bytes": most, "error": most / ledger.total - 1})
        print(f"{name} memory: predicted {ledger.total / 1e6:.1f} MB, measured {most / 1e6:.1f} "
              f"({most / ledger.total - 1:+.1%})", flush=True)
    probe = Probe(engine.runner.backend, args.dtype) if timed else None
    for point, (kind, rows, tokens) in timed.items():
        known = entries().get(name, {}).get("points", {}).get(point, {})
        known = known if known.get("record") == hardware.source else {"record": hardware.source, "pairs": []}
        pairs = known["pairs"]
        if len(pairs) >= args.pairs:
            continue
        subject = Prompts(engine, tokens, len(pairs)) if kind == "pp" else Tokens(engine, rows, tokens)
        while len(pairs) < args.pairs and time.monotonic() - begun_s < args.seconds:
            probed = probe.rates()
            pairs.append(pair(engine.model, engine.plan, hardware, point, *subject.timed(), probed))
            save(point, known | summary(pairs))
        subject.close()
        if pairs:
            made = summary(pairs)
            print(f"{name} {point:10} {1e3 * made['measured_s']:9.2f} ms  {made['rescaled_error']:+.0%} of the "
                  f"rescaled prediction, {made['unscaled_error']:+.0%} of the unscaled, {made['share']:.0%} of the "
                  f"ceiling, {len(pairs)} pairs", flush=True)


def anew():
    """By the present record, from what was measured beside an older one."""
    for name, entry in entries().items():
        opened, p, hardware = planned(*(name.split() if " " in name else ("", "auto")))
        for point, known in entry["points"].items():
            if known.get("record") != hardware.source:
                pairs = [pair(opened.config, p, hardware, point, r["tokens"], r["measured_s"], r["rates"])
                         for r in known["pairs"]]
                made = {"record": hardware.source, "measured_beside": known.get("measured_beside", known["record"])}
                saved(name, point, made | summary(pairs), hardware)


def entries():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def saved(name, key, value, hardware):
    found = entries()
    entry = found.setdefault(name, {"points": {}})
    (entry if key == "memory" else entry["points"])[key] = value
    entry["machine"] = {"name": hardware.name, "cores": len(os.sched_getaffinity(0)), "threads": hardware.cores,
                        "system": f"{platform.system()} {platform.machine()}", "rates": hardware.source,
                        "ceilings": {k: hardware.rates[k] for k in ("bandwidth", "float32", "int8")}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def plot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6))
    for name, entry in entries().items():
        points = entry["points"].items()
        axes.loglog(*zip(*((median(r["rescaled_s"] for r in p["pairs"]), p["measured_s"]) for _, p in points)), "o",
                    markersize=3, label=name)
        for point, p in sorted(points, key=lambda item: parsed(item[0])):
            print(f"| {name} | {point} | {1e3 * p['measured_s']:.2f} ms | {p['rescaled_error']:+.0%} | "
                  f"{p['unscaled_error']:+.0%} | {len(p['pairs'])} |")
        if m := entry.get("memory"):
            print(f"| {name} | memory | {m['measured_bytes'] / 1e6:.1f} MB | {m['error']:+.1%} | | |")
    low, high = axes.get_xlim()
    axes.loglog([low, high], [low, high], "k-", linewidth=0.8)
    axes.fill_between([low, high], [0.85 * low, 0.85 * high], [1.15 * low, 1.15 * high], color="0.9")
    axes.set_xlabel("predicted seconds, rescaled by the ceilings probed beside")
    axes.set_ylabel("measured seconds: first token, and each further token")
    axes.legend(fontsize=7)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="nothing or '': the embedded model")
    parser.add_argument("dtype", nargs="?", help="auto: as the file has it")
    parser.add_argument("points", nargs="?", default="pp64,pp256,tg1@64,tg4@64,tg16@64")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no pair after so many")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    plot() if given.plot else anew() if given.anew else run(given)
