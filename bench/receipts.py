"""Do receipts add up to the machine's time? Wall time of loads beside what requests were charged, and what nobody was.

    python bench/receipts.py [--model dummy:1b] [--out bench/results/receipts.json]

"served" is what a server's /v1/status says of a load over HTTP; "wall" is the time from the first request to the last
answer, seen from outside.
"""
import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve_process import Served

from gramme.config import EngineConfig
from gramme.llm.engine import Engine
from gramme.request import Request, SamplingParams

PROMPT, ANSWER = 48, 64


def load(seed, count):
    r = random.Random(seed)
    return [[r.randrange(4, 200) for _ in range(PROMPT)] for _ in range(count)]


def in_process(engine, seed, count):
    """(wall, charged to requests, charged to nobody) seconds."""
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True, temperature=0)
    before, began = engine.stats(), time.perf_counter()
    for i, prompt in enumerate(load(seed, count)):
        engine.add(Request(id=f"{seed}-{i}", prompt_token_ids=prompt, params=params))
    while engine.busy:
        engine.step()
    after = engine.stats()
    return time.perf_counter() - began, after.spent.seconds - before.spent.seconds, after.other_s - before.other_s


def served(server, seed, count):
    def spent():
        said = json.loads(server.get("/v1/status")[1])["receipts"]
        return said["total"]["seconds"], said["other_s"]

    before, began = spent(), time.perf_counter()
    ask = {"max_tokens": ANSWER, "ignore_eos": True, "temperature": 0}
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda prompt: server.post("/v1/completions", ask | {"prompt": prompt}), load(seed, count)))
    wall = time.perf_counter() - began
    return wall, *(b - a for a, b in zip(before, spent()))


def row(name, count, seconds):
    wall, charged, other = seconds
    print(f"{name:10} {count:2} at once: wall {wall:7.3f} s, requests {charged:7.3f} s, nobody {other:.4f} s, "
          f"{other / (charged + other):.2%} of the machine's time", flush=True)
    return {"how": name, "concurrency": count, "wall_s": wall, "requests_s": charged, "other_s": other,
            "other_share": other / (charged + other)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path)
    asked, rows = parser.parse_args(), []
    engine = Engine.load(EngineConfig(model=asked.model, skip_tokenizer_init=True, max_model_len=256))
    with Served(*filter(None, [asked.model]), "--max-model-len", "256", "--no-access-log") as server:
        for count in (1, 8):
            for name, run in (("in process", lambda s, n: in_process(engine, s, n)),
                              ("served", lambda s, n: served(server, s, n))):
                run(1, count), run(2, count)  # records steps
                rows.append(row(name, count, run(3, count)))
    if asked.out:
        made = {"bench": "receipts", "model": asked.model or "gramme-nano", "rows": rows}
        asked.out.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
