"""What 8-bit activations cost beside float32 ones on the same 4-bit weights, in French and in English.

    python bench/accuracy.py [MODEL] [--level avx2]      # writes bench/results/accuracy.json

The model's float weights, the embedded one's by default, are rounded to 4 bits in groups of 32 and of 128 columns.
The inputs of every matrix are those that the held-out texts bring in the float32 pass; its product by the integer
kernels is compared with the product by the same weights in float32: norm of the difference over norm, for all rows of
all layers of a kind (`error`), the worst layer and the worst row. Both sizes of activation groups are shown where the
weights allow them; `used` is what the loader chooses.
"""
import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
WINDOW = 256  # tokens: the length that the embedded model was trained on
GROUPS = (32, 128)
KINDS = ("qkv", "o", "gate_up", "down")
LIMITS = {"error": 0.01, "perplexity_increase": 0.005}


def integer_model(model: str, group: int):
    """The model with its float matrices rounded to 4 bits in groups of `group` columns, on the CPU's kernels."""
    from gramme.config import EngineConfig
    from gramme.evals.subject import Subject
    from gramme.kernels.load import backend
    from gramme.models.load import build
    from gramme.models.open import open_model
    from gramme.quant.rounding import round_to_nearest
    from gramme.text.tokenizer import load_tokenizer

    opened, kernels = open_model(EngineConfig(model=model)), backend("cpu", len(os.sched_getaffinity(0)))

    def source(name: str):
        a = opened.source(name)
        return round_to_nearest(a, 4, group) if isinstance(a, np.ndarray) and a.ndim == 2 else a

    decoder = build(opened.config, source, kernels, "int4", WINDOW)
    return Subject(opened.name, opened.config, load_tokenizer(opened.text), decoder, kernels.device)


def float_model(integer, seen: Callable[[str, int, np.ndarray], object]):
    """The same weights in float32; `seen` is told the kind, the layer and the input (T, K) of each product."""
    from gramme.kernels.cpu.layout import pack
    from gramme.quant.weights import Dense

    names, decoder = {}, integer.decoder

    def told(op):
        def run(x, packed, *more):
            if id(packed) in names:
                seen(*names[id(packed)], x)
            return op(x, packed, *more)
        return run

    ops = replace(decoder.ops, matmul=told(decoder.ops.matmul), gate_up=told(decoder.ops.gate_up))

    def widened(kind: str, layer: int, w):
        dense = Dense(ops, pack(np.ascontiguousarray(w.dense())), w.bias)
        names[id(dense.packed)] = kind, layer
        return dense

    layers = [replace(layer, **{kind: widened(kind, i, getattr(layer, kind)) for kind in KINDS})
              for i, layer in enumerate(decoder.layers)]
    return replace(integer, decoder=replace(decoder, ops=ops, layers=layers, head=widened("head", 0, decoder.head)))


class Errors:
    """Sums of squares by kind, activation group and layer, and the worst rows."""

    def __init__(self, decoder):
        self._ops = decoder.ops
        self._weights = {(kind, i): getattr(layer, kind) for i, layer in enumerate(decoder.layers) for kind in KINDS}
        self._weights["head", 0] = decoder.head
        self._dense = {key: np.ascontiguousarray(w.dense().T) for key, w in self._weights.items()}
        self._sums, self._worst = {}, {}

    def add(self, kind: str, layer: int, x: np.ndarray) -> None:
        w = self._weights[kind, layer]
        want = x @ self._dense[kind, layer]
        norms = (want * want).sum(1, dtype=np.float64)
        for group in GROUPS:
            if w.packed.group % group:
                continue
            off = self._ops.matmul(self._ops.quantise(x, f"int8/{group}"), w.packed, None) - want
            errors = (off * off).sum(1, dtype=np.float64)
            self._sums.setdefault((kind, group), {}).setdefault(layer, np.zeros(2))[:] += errors.sum(), norms.sum()
            worst = float(np.sqrt(errors / np.maximum(norms, 1e-30)).max())
            self._worst[kind, group] = max(worst, self._worst.get((kind, group), 0.0))

    def table(self) -> dict[str, dict[str, dict]]:
        """kind -> activation group -> figures"""
        out: dict[str, dict[str, dict]] = {}
        for (kind, group), layers in self._sums.items():
            by_layer = np.array([layers[i] for i in sorted(layers)])
            errors = np.sqrt(by_layer[:, 0] / by_layer[:, 1])
            out.setdefault(kind, {})[f"int8/{group}"] = {
                "used": self._weights[kind, 0].act == f"int8/{group}",
                "error": float(np.sqrt(by_layer[:, 0].sum() / by_layer[:, 1].sum())),
                "worst_layer": float(errors.max()), "worst_row": self._worst[kind, group],
            }
        return out


def measure(model: str, group: int) -> dict[str, dict]:
    """language -> errors by kind, and what the perplexity does"""
    from gramme.evals import texts
    from gramme.evals.scores import compare, windows
    from gramme.evals.summary import loss

    integer, out = integer_model(model, group), {}
    for language, text in texts.shipped("held-out").items():
        errors = Errors(integer.decoder)
        cut = windows(integer.tokenizer.encode(text), WINDOW, WINDOW)
        found = loss(compare(float_model(integer, errors.add), integer, cut))
        out[language] = {"tokens": found.tokens, "kinds": errors.table()} | {
            name: asdict(getattr(found, name))
            for name in ("perplexity", "reference_perplexity", "perplexity_increase", "kl")}
    return out


def rows(found: dict[str, dict[str, dict]]):
    """(weights, language, kind, activations, figures)"""
    for weights, languages in found.items():
        for language, figures in languages.items():
            for kind, groups in figures["kinds"].items():
                for act, errors in groups.items():
                    yield weights, language, kind, act, errors


def met(found: dict[str, dict[str, dict]]) -> bool:
    """Whether every layer of every kind as it is used, and both perplexities, stay within LIMITS."""
    return all(e["worst_layer"] < LIMITS["error"] for *_, e in rows(found) if e["used"]) and all(
        abs(f["perplexity_increase"]["value"]) < LIMITS["perplexity_increase"]
        for languages in found.values() for f in languages.values())


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.machine()}"}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", default="")
    p.add_argument("--level", default="", help="forces an instruction set")
    args = p.parse_args()
    if args.level:
        os.environ["GRAMME_CPU_LEVEL"] = args.level
    from gramme.kernels.cpu.known import best_level

    found = {f"4 bits, group {group}": measure(args.model, group) for group in GROUPS}
    for weights, language, kind, act, e in rows(found):
        used = "used" if e["used"] else ""
        print(f"{weights:20} {language}  {kind:8} {act:9}{used:5} {e['error']:7.3%}, worst layer "
              f"{e['worst_layer']:7.3%}, worst row {e['worst_row']:7.3%}")
    for weights, languages in found.items():
        for language, f in languages.items():
            print(f"{weights:20} {language}  perplexity {f['reference_perplexity']['value']:.3f} with float32, "
                  f"{f['perplexity']['value']:.3f} with int8: {f['perplexity_increase']['value']:+.3%}")
    record = {"command": "python bench/accuracy.py", "model": args.model or "embedded", "window": WINDOW,
              "level": best_level(), "machine": machine(), "limits": LIMITS, "met": met(found), "weights": found}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"met": record["met"], "results": str(RESULTS)}))


if __name__ == "__main__":
    main()
