"""Load, clients that leave, and bad input for a long time: memory, descriptors, threads and pages must not grow.

    python bench/soak.py [--seconds 600] [--leak KB]

A canary asks the same question all the time and must get the same tokens. What the processes hold is compared between
a quarter of the run and its end, when nothing runs. With --leak the engine leaves so many kB behind at each request:
the soak must then say so. Prints counts and one line of JSON, writes it to bench/results/soak.json, exits with 1 when
something grew or failed.
"""
import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from serve_process import Served

RESULTS = Path(__file__).parent / "results"
WORKERS = 6
ABORT_SHARE, BAD_SHARE = 0.3, 0.2
MAX_GROWTH_KB = 0.5  # of resident memory a request, beyond what settles
SETTLES_KB = 8_000  # after minutes of load; a short run must allow more: captured steps take up to 50 MB, once
POOL_THREADS = 40  # that a pool may still start
JSON = {"content-type": "application/json"}
CANARY = {"prompt": [3, 4, 5], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
BAD = [b"{", b'{"prompt":[-1]}', b'{"prompt":"a","temperature":9}', b'{"prompt":"a","n":1000}', b"[" * 10_000,
       b'{"prompt":"a","stop":["a","b","c","d","e"]}', b'{"prompt":[]}', b'{"prompt":"\xff"}', b'{"messages":5}']


class Soak:
    """Threads that ask, leave and err, until `stop`; `faults` holds what should not have happened."""

    def __init__(self, server, seed=1):
        self.server, self.counts, self.faults, self.stop = server, Counter(), [], threading.Event()
        self.wanted = self.canary()
        acts = [threading.Thread(target=self.work, args=(random.Random(f"{seed} {i}"),)) for i in range(WORKERS)]
        self.threads = [*acts, threading.Thread(target=self.watch)]

    def work(self, rng):
        while not self.stop.is_set():
            chance = rng.random()
            act = self.leave if chance < ABORT_SHARE else self.err if chance < ABORT_SHARE + BAD_SHARE else self.ask
            try:
                act(rng)
                self.counts[act.__name__] += 1
            except Exception as error:
                self.faults.append(f"{act.__name__}: {type(error).__name__}: {error!s:.200}")

    def watch(self):
        while not self.stop.wait(0.5):
            if (got := self.canary()) != self.wanted:
                self.faults.append(f"the canary got {got!s:.200}")
            self.counts["canary"] += 1

    def canary(self):
        status, reply = self.server.post("/v1/completions", CANARY)
        return reply["choices"][0]["token_ids"] if status == 200 else reply

    def ask(self, rng):
        status, _, _ = self.server.request("POST", "/v1/completions", body(rng, rng.randrange(1, 24)), JSON)
        assert status == 200, status

    def leave(self, rng):
        """Close the connection at a random moment, streamed or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.request("POST", "/v1/completions", body(rng, 200), JSON)
        time.sleep(rng.random() * 0.15)
        connection.close()

    def err(self, rng):
        status, _, _ = self.server.request("POST", "/v1/completions", rng.choice(BAD), JSON)
        assert 400 <= status < 500, status

    def run(self, seconds):
        """Load for so long, then quiet until nothing runs."""
        self.stop.clear()
        for t in self.threads:
            t.start()
        time.sleep(seconds)
        self.stop.set()
        for t in self.threads:
            t.join(60)
        gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        self.server.wait_for(lambda: not any(self.server.metric(g) for g in gauges), 30)


def body(rng, answer):
    prompt = [rng.randrange(3, 4000) for _ in range(rng.choice((1, 5, 40, 200)))]
    return json.dumps({"prompt": prompt, "max_tokens": answer, "n": rng.choice((1, 1, 1, 3)), "ignore_eos": True,
                       "stream": rng.random() < 0.5, "seed": rng.randrange(1 << 30)}).encode()


def held(server):
    """What the server's processes hold now."""
    pids = [server.process.pid, *server.children()]
    status = [dict(line.split(":", 1) for line in Path(f"/proc/{p}/status").read_text().splitlines()) for p in pids]
    return {"rss_kb": sum(int(s["VmRSS"].split()[0]) for s in status),
            "threads": sum(int(s["Threads"]) for s in status),
            "descriptors": sum(len(list(Path(f"/proc/{p}/fd").iterdir())) for p in pids)}


def soak(seconds, leak_kb=0, settles_kb=SETTLES_KB):
    """Two loads, the second three times as long: the first warms up, what the second adds is growth."""
    faults = f"leak:{leak_kb}" if leak_kb else ""
    with Served("dummy:tiny", "--max-model-len", "512", "--kv-tokens", "4096", "--max-num-seqs", "16",
                "--no-access-log", env={"GRAMME_FAULTS": faults}) as server:
        first = Soak(server, 1)
        first.run(seconds / 4)
        before = held(server)
        second = Soak(server, 2)
        second.run(seconds * 3 / 4)
        after = held(server)
        same_process = server.process.poll() is None
    counts, errors = first.counts + second.counts, first.faults + second.faults
    requests = sum(second.counts.values())
    grown = {name: after[name] - before[name] for name in before}
    allowed = {"rss_kb": settles_kb + MAX_GROWTH_KB * requests, "threads": POOL_THREADS, "descriptors": 2}
    grew = [name for name in grown if grown[name] > allowed[name]]
    return {"seconds": seconds, "leak_kb": leak_kb, "counts": dict(counts), "faults": errors[:10],
            "fault_count": len(errors), "before": before, "after": after, "grown": grown,
            "grew": grew, "crashes": int(not same_process)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=600)
    p.add_argument("--leak", type=int, default=0, metavar="KB")
    args = p.parse_args()
    result = soak(args.seconds, args.leak)
    print(f"{sum(result['counts'].values())} requests, {result['fault_count']} faults, "
          f"grew: {result['grew'] or 'nothing'} ({result['grown']})")
    print(json.dumps(result))
    if not args.leak:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(result["grew"] or result["fault_count"] or result["crashes"]))


if __name__ == "__main__":
    main()
