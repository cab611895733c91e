"""`gramme quantize` on large shapes: memory and time predicted and measured, layer by layer, and what the gate said.

    python bench/quantise.py 1b FOLDER      the 1b shape from the first layer to the saved directory; needs torch
    python bench/quantise.py 7b FOLDER      the plan for the 7b shape, and the memory of two of its layers
    options: --tokens   16384 of calibration text
             --alone    nothing else runs on the machine now, so the times of this run count
             --threads  2
             --device   cpu or cuda; what is said of a GPU's memory stands in the record's lines
             --widened  with limits that random weights can keep, so that the result is saved

Killed and started again, it goes on with the layer at which it was. Weights are random (`dummy:`), so what the gate
finds says that it ran, not what 4 bits cost: it refuses, and its solved layers are saved with wider limits. Adds to
bench/results/quantize.json while it runs.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from startup import machine

from gramme.evals import texts

RESULTS = Path(__file__).parent / "results" / "quantize.json"
CHECK_BYTES = 5000  # of each language's held-out text: a few windows of 512 tokens
SHAPES = {"1b": ["dummy:1b"], "7b": ["dummy:mistral-7b", "--layers", "2"]}
PREDICTED = {"memory_gb": r"memory ([\d.]+) GB of", "time": r"([\d.]+ \w+) at this", "gflop_s": r"(\d+) GFLOP",
             "all_layers": r"all \d+, judged and saved: (.*)"}
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--tokens", default="16384")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--widened", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (model, *more), out = SHAPES[args.shape], args.folder / args.shape
    more += ["--tokens", args.tokens, "--threads", args.threads, "--device", args.device]
    if not out.with_name(out.name + ".partial").exists():
        asked = f"gramme quantize {model} OUT {' '.join(more)} --check-text fr:FILE --check-text en:FILE"
        save(args.shape, {"command": asked, "machine": machine(), "finished": False, "runs": []})
    command = [sys.executable, "-m", "gramme", "quantize", model, str(out), *more]
    for language, text in texts.shipped("held-out").items():
        path = args.folder / f"check.{language}.txt"
        path.write_text(text.encode()[:CHECK_BYTES].decode(errors="ignore"), "utf-8")
        command += ["--check-text", f"{language}:{path}"]
    limits = ["--max-kl", "1", "--max-ppl-increase", "1"] if args.widened else []
    watch(args.shape, [*command, *limits], out, {"alone": args.alone, "limits": " ".join(limits) or "default"})


def watch(shape: str, command: list[str], out: Path, how: dict[str, Any]) -> None:
    """One run of the command, its record saved whenever a layer is done."""
    record = json.loads(RESULTS.read_text())[shape]
    layers = lambda: len(list(out.parent.glob(f"{out.name}.partial/layer-*.safetensors")))
    done = layers()
    run: dict[str, Any] = how | {"layers_before": done, "layers_after": done, "peak_gb": 0.0, "wall_s": [],
                           "cpu_s": [], "ended": "killed"}
    record["runs"].append(run)
    log, mark = out.with_name(out.name + ".log"), None
    with log.open("w") as said, subprocess.Popen(command, stdout=said) as child:
        while child.poll() is None:
            time.sleep(0.1)
            cpu, peak = usage(child.pid)
            run["peak_gb"] = max(run["peak_gb"], peak)
            now = time.monotonic(), cpu
            if mark is None and log.stat().st_size:
                mark = now  # the plan was printed: layers begin
            if mark and (count := layers()) > done:
                for name, later, earlier in zip(("wall_s", "cpu_s"), now, mark, strict=True):
                    run[name] += [round((later - earlier) / (count - done), 1)] * (count - done)
                run["layers_after"] = done = count
                mark = now
                save(shape, record)
    run["rest_s"] = round(time.monotonic() - mark[0], 1) if mark else None
    run["ended"] = f"exit {child.returncode}"
    run["said"] = [line.replace(str(out.parent), "FOLDER") for line in log.read_text().splitlines()]
    print("\n".join(run["said"]))
    save(shape, record | summary(record, log.read_text(), child.returncode))


def usage(pid: int) -> tuple[float, float]:
    """Seconds of CPU, GB at the peak."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    return (int(stat[11]) + int(stat[12])) / TICK, round(int(peak[1]) * 1024 / 1e9, 3) if peak else 0.0


def summary(record: dict[str, Any], said: str, code: int) -> dict[str, Any]:
    """Solving alone is the part of the time that is known layer by layer; judging and saving follow it."""
    alone = [t for r in record["runs"] if r["alone"] for t in r["wall_s"]]
    predicted = {name: found[1] for name, pattern in PREDICTED.items() if (found := re.search(pattern, said))}
    every = {name: [t for r in record["runs"] for t in r[name]] for name in ("wall_s", "cpu_s")}
    return {
        "predicted": predicted, "finished": code in (0, 3), "exit": code,
        "memory_peak_gb": max(r["peak_gb"] for r in record["runs"]),
        "minutes_of_all_layers": round(sum(every["wall_s"]) / 60, 1),
        "cpu_minutes_of_all_layers": round(sum(every["cpu_s"]) / 60, 1),
        "layers_alone": len(alone), "layer_alone_s": round(median(alone), 1) if alone else None,
    }


def save(shape: str, record: dict[str, Any]) -> None:
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(old | {shape: record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
