"""What a change of gramme brings: two checkouts, or two builds of the kernels, in turn on one file, pair by pair.

    python bench/in_turn.py model.gguf --a ../before --b . [--pairs 8]
    python bench/in_turn.py model.gguf --a build/before.so --b build/after.so     # the kernels alone differ

The work is that of vs_llamacpp.py: prefill, one sequence decoding, eight decoding together. Which side is first
alternates. Prints the ratios b / a and their median; saves nothing: a change's figures belong into notes.md.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from vs_llamacpp import ROWS, bandwidth

BENCH = Path(__file__).parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--a", required=True, type=Path)
    p.add_argument("--b", required=True, type=Path)
    p.add_argument("--pairs", type=int, default=8)
    p.add_argument("--prompt", type=int, default=256)
    p.add_argument("--gen", type=int, default=24)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = p.parse_args()
    for side in (a.a, a.b):
        if not side.exists():
            p.error(f"{side}: there is no such checkout or library")
    ratios: dict[str, list[float]] = {row: [] for row in ROWS}
    for i in range(a.pairs):
        speeds = {side: measure(side, a) for side in ((a.b, a.a) if i % 2 else (a.a, a.b))}
        for row in ROWS:
            ratios[row].append(speeds[a.b][row] / speeds[a.a][row])
        print("   ".join(f"{row} {speeds[a.a][row]:.1f} {speeds[a.b][row]:.1f}" for row in ROWS),
              f"  tokens/s; memory {bandwidth(a.threads)} GB/s", flush=True)
    for row, found in ratios.items():
        print(f"{row:8} b / a: median {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")


def measure(side: Path, a: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of each row, in a process that runs `side`: a checkout's package, or this one's on another library."""
    tree, kernels = (BENCH.parent, {"GRAMME_CPU_LIBRARY": str(side.resolve())}) if side.is_file() else (side, {})
    command = [sys.executable, str(BENCH / "vs_llamacpp.py"), a.model, "--worker", "gramme", "--prompt", str(a.prompt),
               "--gen", str(a.gen), "--repeat", str(a.repeat), "--threads", str(a.threads)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree.resolve()), **kernels},
                         capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{side}: {ran.stderr.strip().splitlines()[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
