"""From Enter to the first token of `gramme run` on the embedded model: seconds, and memory of all its processes then.

The command runs through a pipe; when its first byte arrives the processes are stopped and /proc/*/smaps_rollup is read:
PSS counts a page that n processes share as 1/n in each. How long `gramme plan` takes is timed too. Linux only. The last
line is JSON; --save keeps it.

    python bench/startup.py [--runs 9] [--save] [-- further arguments of gramme run]
"""
import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
PLAN = [sys.executable, "-m", "gramme", "plan", "dummy:mistral-7b"]
COMMAND = [sys.executable, "-m", "gramme", "run", "-p", "Translate to French: The train leaves at eight."]


def tree(pid: int) -> list[int]:
    """The process and everything that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree(int(child)))]


def pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def trial(more: list[str]) -> tuple[float, list[int]]:
    """Seconds to the first byte, PSS bytes of each process at that moment."""
    began = time.perf_counter()
    with subprocess.Popen([*COMMAND, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as child:
        first = os.read(child.stdout.fileno(), 1)
        seconds = time.perf_counter() - began
        processes = tree(child.pid) if first else []
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        sizes = [pss_bytes(pid) for pid in processes]
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        child.stdout.close()
    if not first:
        raise SystemExit(f"no output from {' '.join(COMMAND)}")
    return seconds, sizes


def plan_s() -> float:
    began = time.perf_counter()
    subprocess.run(PLAN, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def machine() -> dict[str, object]:
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return {"cpu": model[0] if model else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write bench/results/startup.json")
    parser.add_argument("more", nargs="*")
    args = parser.parse_args()
    trial(args.more)  # the files come into the page cache
    trials = [trial(args.more) for _ in range(args.runs)]
    plan_s()
    planned_s = [round(plan_s(), 3) for _ in range(args.runs)]
    first_token_s = [round(seconds, 3) for seconds, _ in trials]
    pss_mb = [round(sum(sizes) / 1e6, 1) for _, sizes in trials]
    print(f"first token after {median(first_token_s):.3f} s (median of {first_token_s})")
    print(f"gramme plan takes {median(planned_s):.3f} s (median of {planned_s})")
    by_process = [round(size / 1e6, 1) for size in trials[-1][1]]
    print(f"memory then {median(pss_mb):.1f} MB PSS; by process, last run: {by_process}")
    record = {"bench": "startup", "first_token_s": median(first_token_s), "all_first_token_s": first_token_s,
              "pss_mb": median(pss_mb), "all_pss_mb": pss_mb, "plan_s": median(planned_s),
              "all_plan_s": planned_s, "arguments": args.more, "machine": machine()}
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
