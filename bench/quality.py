"""What 4 bits cost the embedded model, in French and in English, by method and group size.

    python bench/quality.py [MODEL] [--folder DIR]      needs torch and matplotlib; minutes

One calibration pass solves every recipe; each is judged on the held-out texts that come with gramme, against the model
in float32. With a folder, solved layers and judged recipes are kept in it and another run goes on from there. Writes
bench/results/quality.json and quality.png.
"""
import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from startup import machine

from gramme import __version__
from gramme.config import ConfigError, EngineConfig
from gramme.evals import texts
from gramme.models.open import open_model
from gramme.quantize.gate import candidate, failures, judge, reference
from gramme.quantize.limits import Limits
from gramme.quantize.recipe import Recipe
from gramme.quantize.run import Task, calibration_windows, set_threads, solve, true_dtype
from gramme.quantize.work import Work, write_text

RESULTS = Path(__file__).parent / "results"
GROUPS = (32, 64, 128)
SERIES = {  # name: method, format
    "RTN": ("rtn", "compressed-tensors"), "AWQ": ("awq", "compressed-tensors"),
    "AWQ, zero points": ("awq", "awq"), "GPTQ": ("gptq", "compressed-tensors"),
}
WINDOW = 256  # tokens: the length that the embedded model was trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--folder", type=Path, help="kept, to go on from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    set_threads(args.threads)
    opened = open_model(EngineConfig(model=args.model))
    m = true_dtype(opened)
    recipes = {f"{name} {group}": Recipe(method=method, group=group, format=form)
               for name, (method, form) in SERIES.items() for group in GROUPS}
    recipes["int8"] = Recipe(method="rtn", bits=8, group=32)
    recipes["GGUF Q4_0, GPTQ"] = Recipe(method="gptq", group=32, format="gguf")
    refused = {name: reason for name, r in recipes.items() if (reason := reason_against(r, m))}
    task = Task(args.model, replace(opened, config=m), {k: r for k, r in recipes.items() if k not in refused},
                texts.shipped("calibration"), window=WINDOW)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(task, args.folder or Path(folder))
    record = {
        "command": "python bench/quality.py", "gramme": __version__, "model": opened.name,
        "parameters": m.parameters, "layers": m.layers, "width": m.width, "ff_width": m.ff_width,
        "window": WINDOW, "calibration_tokens": task.tokens, "machine": machine(),
        "seconds": round(time.monotonic() - began), "refused": refused, "worse_than_rtn": worse(found),
        "losses": found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(found, RESULTS / "quality.png")
    print(table(found, refused))
    print(json.dumps({"results": str(RESULTS / "quality.json"), "seconds": record["seconds"],
                      "worse_than_rtn": record["worse_than_rtn"]}))


def reason_against(recipe: Recipe, m: object) -> str | None:
    try:
        recipe.check(m)
    except ConfigError as error:
        return str(error)
    return None


def measure(task: Task, folder: Path) -> dict[str, dict[str, dict]]:
    """recipe -> language -> `Loss` as a record, and "gate" -> why it would be refused"""
    cut = calibration_windows(task)
    work = Work(folder / "work", task.describe(cut))
    rows = work.path / "rows.json"
    found = json.loads(rows.read_text()) if rows.exists() else {}
    solve(task, work, cut, task.config.layers, lambda done, total: print(f"layer {done} of {total}", file=sys.stderr))
    original, held_out = reference(task), texts.shipped("held-out")
    for name in task.recipes:
        if name not in found:
            print(name, file=sys.stderr)
            losses = judge(original, candidate(task, name, work, original), held_out, WINDOW, quiet)
            found[name] = {language: asdict(loss) for language, loss in losses.items()}
            found[name]["gate"] = failures(losses, dict.fromkeys(losses, Limits()))
            write_text(rows, json.dumps(found))
    return {name: found[name] for name in task.recipes}


def worse(found: dict) -> list[str]:
    """Where AWQ or GPTQ lose more, by mean KL, than rounding with the same bits and groups."""
    kl = lambda name, language: found[name][language]["kl"]["value"]
    return [f"{name} {group}, {language}" for group in GROUPS for name in SERIES if f"{name} {group}" in found
            for language in texts.LANGUAGES if kl(f"{name} {group}", language) > kl(f"RTN {group}", language)]


def quiet(done: int, total: int) -> None:
    pass


def table(found: dict, refused: dict[str, str]) -> str:
    languages = texts.LANGUAGES
    figures = "perplexity", "rise, %", "mean KL, nats", "KL p99", "top-1, %"
    head = " | ".join(f"{x} {figure}" for x in languages for figure in figures)
    rows = [f"| recipe, group | {head} | gate |", "| --- |" + " --- |" * (5 * len(languages) + 1)]
    first = next(iter(found.values()))
    cells = " | ".join(f"{first[x]['reference_perplexity']['value']:.2f} | 0 | 0 | 0 | 100" for x in languages)
    rows.append(f"| float32 | {cells} | |")
    for name, losses in found.items():
        gate = "refuses" if losses["gate"] else "accepts"
        rows.append(f"| {name} | " + " | ".join(cell(losses[x]) for x in languages) + f" | {gate} |")
    return "\n".join(rows + [f"| {name} | refused: {why} |" for name, why in refused.items()])


def cell(x: dict) -> str:
    kl, rise = x["kl"], x["perplexity_increase"]
    return (f"{x['perplexity']['value']:.2f} | {100 * rise['value']:.2f} ± {50 * (rise['high'] - rise['low']):.2f} | "
            f"{kl['value']:.4f} ± {(kl['high'] - kl['low']) / 2:.4f} | {x['kl_p99']['value']:.3f} | "
            f"{100 * x['top1_agreement']['value']:.1f}")


def plot(found: dict, path: Path) -> None:
    languages = texts.LANGUAGES
    figure, axes = plt.subplots(1, len(languages), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, language in zip(axes, languages, strict=True):
        for i, name in enumerate(SERIES):
            groups = [g for g in GROUPS if f"{name} {g}" in found]
            figures = [found[f"{name} {g}"][language]["kl"] for g in groups]
            y = [f["value"] for f in figures]
            spread = [[f["value"] - f["low"] for f in figures], [f["high"] - f["value"] for f in figures]]
            axis.errorbar([g * 1.03 ** (i - 1.5) for g in groups], y, spread, marker="o", capsize=3, label=name)
        axis.axhline(found["int8"][language]["kl"]["value"], color="grey", linestyle=":", label="8 bits, group 32")
        axis.axhline(Limits().max_kl, color="black", linestyle="--", label="the gate")
        axis.set(xscale="log", yscale="log", xlabel="weights that share a scale",
                 title={"fr": "French", "en": "English"}.get(language, language))
        axis.set_xticks(GROUPS, [str(g) for g in GROUPS])
        axis.minorticks_off()
    axes[0].set_ylabel("mean KL to float32, nats")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
