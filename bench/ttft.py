"""Predicted beside measured time to first token of a real server, at loads from nearly idle to more than it can carry.

    python bench/ttft.py [MODEL ...]      # default: the embedded model; further arguments are the server's

Requests come as a Poisson process, with prompts of all sizes, streamed. Then the same overload with --slo-ttft: how
many are let in, and how many of these are in time. Ends with a line of JSON; writes bench/results/ttft-NAME.json.
"""
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from serve_process import Served
from startup import machine

RESULTS = Path(__file__).parent / "results"
LOADS = (0.2, 0.5, 0.8, 1.2)  # of the capacity
SECONDS, MOST = 7.0, 120  # of each load
ANSWER = 24  # tokens at most
OVERLOAD = 2.0
MEDIAN_TOKENS, SPREAD = 120, 0.8  # of prompts, log-normal


def body(r, vocab, limit):
    size = max(4, min(limit, round(MEDIAN_TOKENS * 2.718 ** r.gauss(0, SPREAD))))
    ids = [r.randrange(3, vocab) for _ in range(size)]
    return {"prompt": ids, "max_tokens": r.randint(1, ANSWER), "ignore_eos": True, "temperature": 0, "stream": True,
            "timings": True}


async def ask(port, body):
    """(status, Retry-After, timings with `client_ns`: from sending to the first of the answer as the client sees it)"""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data, sent_ns = json.dumps(body).encode(), time.monotonic_ns()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                 f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    reply = b""
    while b'"text"' not in reply and (part := await reader.read(1 << 16)):
        reply += part
    client_ns = time.monotonic_ns() - sent_ns
    reply = (reply + await reader.read()).decode()
    writer.close()
    head, _, rest = reply.partition("\r\n\r\n")
    status = int(head.split()[1])
    if status != 200:
        return status, int(head.lower().partition("retry-after: ")[2].split()[0]), None
    *_, last = (line for line in rest.splitlines() if line.startswith("data: {"))  # an event is a chunk of its own
    return status, None, json.loads(last[6:])["timings"] | {"client_ns": client_ns}


async def load(port, rate, bodies, seconds):
    """Open loop: each request is sent when it is due, however late the others are."""
    r, tasks, due_s, began_s = random.Random(1), [], 0.0, time.monotonic()
    for one in bodies:
        due_s += r.expovariate(rate)
        if due_s > seconds:
            break
        await asyncio.sleep(began_s + due_s - time.monotonic())
        tasks.append(asyncio.create_task(ask(port, one)))
    return await asyncio.gather(*tasks)


async def capacity(port, bodies):
    """Requests a second with 16 at once."""
    began_s = time.monotonic()
    await asyncio.gather(*(ask(port, one) for one in bodies))
    return len(bodies) / (time.monotonic() - began_s)


def summary(answers):
    timed = [t for _, _, t in answers if t]
    ratios = sorted(t["ttft_ns"] / t["predicted_ttft_ns"] for t in timed)
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return {"requests": len(answers), "refused": len(answers) - len(timed),
            "ttft_ms_median": round(median(t["ttft_ns"] for t in timed) / 1e6, 2),
            "predicted_ms_median": round(median(t["predicted_ttft_ns"] for t in timed) / 1e6, 2),
            "client_ms_median": round(median(t["client_ns"] for t in timed) / 1e6, 2),
            "measured_over_predicted_median": round(median(ratios), 3), "error_median": round(median(errors), 3),
            "error_p90": round(errors[int(0.9 * len(errors))], 3)}


def main():
    args = sys.argv[1:] or [""]
    name = Path(args[0].replace("dummy:", "")).stem or "embedded"
    command = [*filter(None, args), "--no-access-log"]
    r, record = random.Random(7), {"bench": "ttft", "model": name, "flags": args[1:], "machine": machine(), "loads": []}
    with Served(*command) as server:
        limit = json.loads(server.get("/props")[1])["default_generation_settings"]["n_ctx"] // 2
        make = lambda count: [body(r, 4000, limit) for _ in range(count)]
        asyncio.run(capacity(server.port, make(8)))
        rate = asyncio.run(capacity(server.port, make(16)))
        for share in LOADS:
            answers = asyncio.run(load(server.port, share * rate, make(MOST), SECONDS))
            record["loads"].append({"of_capacity": share, "requests_per_s": round(share * rate, 2)} | summary(answers))
            print(json.dumps(record["loads"][-1]), flush=True)
    slo_s = 3 * record["loads"][0]["ttft_ms_median"] / 1e3
    with Served(*command, "--slo-ttft", f"{1e3 * slo_s:.0f}ms") as server:
        asyncio.run(capacity(server.port, make(4)))
        answers = asyncio.run(load(server.port, OVERLOAD * rate, make(2 * MOST), SECONDS))
        in_time = sum(t["ttft_ns"] <= 1.25e9 * slo_s for _, _, t in answers if t)
        record["slo"] = {"slo_ms": round(1e3 * slo_s), "of_capacity": OVERLOAD, "within_1.25_slo": in_time,
                         "in_time": sum(t["ttft_ns"] <= 1e9 * slo_s for _, _, t in answers if t)} | summary(answers)
    every = [load["error_median"] for load in record["loads"]]
    record["worst_error_median"] = max(every)
    print(json.dumps(record))
    (RESULTS / f"ttft-{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
