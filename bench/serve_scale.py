"""How the server holds up: a crowd that idles, readers that dawdle, more load than it can carry, the worst inputs.

    python bench/serve_scale.py crowd      # a normal client beside 500 idle connections and 200 slow readers, in pairs
    python bench/serve_scale.py overload   # goodput at offered loads up to four times the capacity, with a plot
    python bench/serve_scale.py worst      # /health while megabytes are tokenised, schemas compiled, templates rendered

Each ends with one line of JSON and writes bench/results/serve_NAME.json.
"""
import argparse
import asyncio
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median

from serve_process import Served

from gramme.bench.client import send, target

RESULTS = Path(__file__).parent / "results"
TINY = ("dummy:tiny", "--no-access-log")
JSON = {"content-type": "application/json"}


def completion(tokens, prompt=(3, 4, 5), **more):
    return {"prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# A crowd

def answer_s(server, requests=20):
    """Seconds of one client that asks again and again, and the CPU seconds that this process took meanwhile."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    for i in range(requests):
        assert server.post("/v1/completions", completion(16, prompt=(9, i + 3)))[0] == 200
    return (time.monotonic() - began_s) / requests, (time.process_time() - began_cpu_s) / requests


class Crowd:
    """Idle connections, and readers of long streams that take a byte now and then."""

    def __init__(self, server, idle, slow):
        self.idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(idle)]
        body = json.dumps(completion(100, stream=True, logprobs=20)).encode()
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        self.slow = []
        for _ in range(slow):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.sendall(head + body)
            self.slow.append(s)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        while not self.stop.wait(1):
            for s in self.slow:
                with suppress(OSError):
                    s.recv(1, socket.MSG_DONTWAIT)

    def leave(self):
        self.stop.set()
        self.thread.join()
        for s in (*self.idle, *self.slow):
            s.close()


def settled(server):
    server.wait_for(lambda: server.metric("num_requests_running") + server.metric("num_requests_waiting") == 0, 60)


def crowd(pairs=10, idle=500, slow=200):
    """Two servers, one with the crowd, are asked in turns. The engine's work for the readers is done before the clock
    runs: what is measured is what holding them costs."""
    options = (*TINY, "--max-model-len", "1024", "--header-limit-s", "600", "--write-limit-s", "600",
               "--max-num-seqs", "256")
    ratios, alone_s, own_s = [], [], []
    with Served(*options) as calm, Served(*options) as busy:
        group = Crowd(busy, idle, slow)
        settled(busy)
        answer_s(calm, 3), answer_s(busy, 3)
        for _ in range(pairs):
            quiet, loud = answer_s(calm), answer_s(busy)
            ratios.append((loud[0] - loud[1]) / (quiet[0] - quiet[1]))
            alone_s.append(quiet[0])
            own_s.append(loud[1])
        group.leave()
    return {"idle": idle, "slow_readers": slow, "pairs": pairs, "ms_alone": round(median(alone_s) * 1e3, 2),
            "client_cpu_ms": round(median(own_s) * 1e3, 2), "ratios": [round(r, 3) for r in ratios],
            "median_ratio": round(median(ratios), 3)}


# Overload

async def offer(port, rate, seconds, limit_s):
    """Open requests at a steady rate, never waiting for answers. Goodput is what is answered within the limit, from
    the first second, when the queue has filled, to the last: what is still queued at the end does not count."""
    place, answers, tasks = target(f"http://127.0.0.1:{port}"), [], []

    async def ask(body, due_s):
        answer = await send(place, place.request("POST", "/v1/completions", body), 10 * limit_s)
        if answer.status:
            now_s = time.monotonic()
            answers.append((answer.status, now_s - due_s, now_s))

    began_s, began_cpu_s = time.monotonic(), time.process_time()
    while (at := len(tasks) / rate) < seconds:
        await asyncio.sleep(max(0, began_s + at - time.monotonic()))
        tasks.append(asyncio.create_task(ask(completion(16, prompt=(3, len(tasks) % 4000 + 3)), began_s + at)))
    cpu_s = time.process_time() - began_cpu_s
    await asyncio.gather(*tasks)
    good = [s <= limit_s for status, s, at_s in answers if status == 200 and began_s + 1 <= at_s < began_s + seconds]
    refused = [s for status, s, _ in answers if status == 429]
    return {"offered": round(len(tasks) / seconds, 1), "goodput": round(sum(good) / (seconds - 1), 1),
            "refused": len(refused), "late": sum(status == 200 and s > limit_s for status, s, _ in answers),
            "lost": len(tasks) - len(answers), "client_cpu_share": round(cpu_s / seconds, 2),
            "refusal_p99_ms": round(percentile(refused, 0.99) * 1e3, 1) if refused else None}


def overload(seconds=4.0, limit_s=2.0):
    """Capacity is the highest load of which 95 % are answered in time; then up to four times as much is offered."""
    with Served(*TINY, "--max-model-len", "64", "--max-num-seqs", "32", "--max-queue", "64") as server:
        run = lambda rate: asyncio.run(offer(server.port, rate, seconds, limit_s))
        run(10)
        rate, rows = 60.0, []  # coarse steps, then fine ones
        while (row := run(rate))["goodput"] >= 0.95 * row["offered"]:
            rows.append(row)
            rate *= 1.5 if rate < 200 else 1.12
        capacity = rows[-1]["offered"] if rows else rate
        rows += [run(capacity * times) for times in (1.0, 1.5, 2.0, 3.0, 4.0)]
    at_most = max(r["goodput"] for r in rows)
    result = {"limit_s": limit_s, "capacity": round(capacity, 1), "rows": rows,
              "goodput_at_4x_of_best": round(rows[-1]["goodput"] / at_most, 3)}
    plot(rows, capacity)
    return result


def plot(rows, capacity):
    """Offered load against goodput, as a small SVG."""
    rows = sorted(rows, key=lambda r: r["offered"])
    right, top = max(r["offered"] for r in rows), max(r["goodput"] for r in rows) * 1.15
    x, y = lambda v: 60 + 520 * v / right, lambda v: 330 - 300 * v / top
    line = " ".join(f"{x(r['offered']):.1f},{y(r['goodput']):.1f}" for r in rows)
    dots = "".join(f'<circle cx="{x(r["offered"]):.1f}" cy="{y(r["goodput"]):.1f}" r="3"/>' for r in rows)
    marks = "".join(f'<text x="{x(capacity * n):.0f}" y="350" text-anchor="middle">{capacity * n:.0f}</text>'
                    for n in (1, 2, 3, 4) if capacity * n <= right * 1.01)
    (RESULTS / "serve_overload.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="380" font-family="sans-serif" font-size="12">'
        '<rect width="600" height="380" fill="white"/><path d="M60 30V330H580" fill="none" stroke="black"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6f8b" stroke-width="2"/>{dots}{marks}'
        f'<text x="54" y="{y(top / 1.15):.0f}" text-anchor="end">{top / 1.15:.0f}</text>'
        f'<line x1="{x(capacity):.0f}" y1="30" x2="{x(capacity):.0f}" y2="330" stroke="#999" stroke-dasharray="4"/>'
        f'<text x="{x(capacity) + 4:.0f}" y="42">capacity</text><text x="320" y="372" text-anchor="middle">'
        'requests offered a second</text><text x="16" y="180" transform="rotate(-90 16 180)" text-anchor="middle">'
        "answered in time a second</text></svg>\n")


# The worst inputs

def schema(width):
    return {"type": "object", "properties": {f"field_{i}": {"anyOf": [
        {"type": "string", "pattern": f"^[a-z]{{{j + 1},40}}$"} for j in range(4)]} for i in range(width)}}


def worst_inputs():
    chat = lambda content, **more: ("/v1/chat/completions", {"messages": [{"role": "user", "content": content}],
                                                             "max_tokens": 1, **more})
    yield "letters", ("/tokenize", {"prompt": "a" * 1_000_000})
    yield "spaces", ("/tokenize", {"prompt": " " * 1_000_000})
    yield "control strings", ("/tokenize", {"prompt": "<s>" * 330_000})
    yield "prose", ("/tokenize", {"prompt": "The quick brown fox, déjà vu; 1234. " * 27_000})
    yield "token ids", ("/v1/completions", {"prompt": [1] * 3_900_000})
    yield "many objects", ("/v1/completions", {"prompt": "a", "x": [{}] * 1_900_000})
    yield "schema", chat("a", response_format={"type": "json_schema",
                                               "json_schema": {"name": "x", "schema": schema(60)}})
    yield "template", ("/v1/chat/completions", {"messages": [{"role": ("user", "assistant")[i % 2], "content": "a"}
                                                             for i in range(4095)], "max_tokens": 1})


def worst(repeats=2):
    rows = {}
    with Served(*TINY, "--max-model-len", "4096") as server, ThreadPoolExecutor(1) as pool:
        idle_s = health_s(server, lambda: False, 100)
        for name, (path, body) in worst_inputs():
            data, seconds, took_s = json.dumps(body, separators=(",", ":")).encode(), [], 0.0
            for _ in range(repeats):
                began_s = time.monotonic()
                future = pool.submit(server.request, "POST", path, data, JSON)
                seconds += health_s(server, lambda f=future: f.done())
                took_s = max(took_s, time.monotonic() - began_s)
            rows[name] = {"status": future.result()[0], "took_s": round(took_s, 2), "probes": len(seconds),
                          "health_p50_ms": round(median(seconds) * 1e3, 1),
                          "health_p99_ms": round(percentile(seconds, 0.99) * 1e3, 1),
                          "health_max_ms": round(max(seconds) * 1e3, 1)}
            print(name, rows[name], flush=True)
    return {"idle_p99_ms": round(percentile(idle_s, 0.99) * 1e3, 1), "rows": rows}


def health_s(server, done, count=10**9):
    """Latencies of probes, one after another, a few milliseconds apart."""
    seconds = []
    while len(seconds) < count and not done():
        began_s = time.monotonic()
        server.get("/health/live")
        seconds.append(time.monotonic() - began_s)
        time.sleep(0.005)
    return seconds or [0.0]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("crowd", "overload", "worst"))
    what = p.parse_args().what
    RESULTS.mkdir(exist_ok=True)
    result = {"crowd": crowd, "overload": overload, "worst": worst}[what]() | {"cores": os.cpu_count()}
    print(json.dumps(result))
    (RESULTS / f"serve_{what}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
