"""From Enter to the first token of a raw prompt of 8 tokens: a GGUF file in the page cache, its laid-out weights kept.

    python bench/second_start.py model.gguf [--runs 5] [--peer-python PEER/bin/python] [--save NAME]

`gramme run` is started as from a shell and timed from outside, to the first byte on its pipe. Beside it the time in
which llama.cpp (llama-cpp-python) loads the same file, its own process aside: imports are not counted for it, nor a
token. The first start of all, which lays the weights out, is not counted. --save: bench/results/second_start-NAME.json.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import startup

PROMPT = "abcd"  # 8 tokens where the tokenizer knows bytes only, as in files that are made to measure speed
LOAD = """
import sys, time, llama_cpp as c
quiet = c.llama_log_callback(lambda *_: None)
c.llama_log_set(quiet, None)
c.llama_backend_init()
began = time.perf_counter()
model = c.llama_model_load_from_file(sys.argv[1].encode(), c.llama_model_default_params())
assert model
print(time.perf_counter() - began)
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--prompt", default=PROMPT)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--peer-python")
    p.add_argument("--save", metavar="NAME")
    a = p.parse_args()
    command = [sys.executable, "-m", "gramme", "run", a.model, "--raw", "-p", a.prompt, "--max-tokens", "2",
               "--ignore-eos", "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    startup.COMMAND = [x for x in command if x != "--json"]
    seconds, peer = [], []
    for _ in range(a.runs):
        seconds.append(round(startup.trial([])[0], 3))
        print(f"gramme's first token after {seconds[-1]} s", flush=True)
    for _ in range(a.runs if a.peer_python else 0):  # behind them: it may drive the weights out of the page cache
        done = subprocess.run([a.peer_python, "-c", LOAD, a.model], check=True, capture_output=True, text=True)
        peer.append(round(float(done.stdout), 3))
        print(f"llama.cpp loads in {peer[-1]} s", flush=True)
    record = {"bench": "second_start", "model": Path(a.model).name, "bytes": Path(a.model).stat().st_size,
              "prompt_tokens": said["prompt_tokens"], "first_token_s": median(seconds), "all_first_token_s": seconds,
              "llama.cpp_load_s": median(peer) if peer else None, "all_llama.cpp_load_s": peer,
              "machine": startup.machine()}
    if a.save:
        (startup.RESULTS / f"second_start-{a.save}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
