"""Streams against a server under test, and what becomes of its processes; no test in here."""
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve_process import rounds

SLOW = {"GRAMME_FAULTS": "slow:10"}  # so that what should be running still runs when it is looked at
LONG = {"prompt": [3, 4], "max_tokens": 400, "ignore_eos": True, "stream": True}


def stream(served, body=LONG):
    """All events of a stream; the last one is b"[DONE]"."""
    status, _, raw = served.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    return status, [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]


def ends_with_error(events):
    return events[-1] == b"[DONE]" and "error" in json.loads(events[-2])


def started(served, count, body=LONG):
    """So many streams in threads, all of them running."""
    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(stream, served, body) for _ in range(count)]
    served.wait_for(lambda: served.metric("num_requests_running") == count)
    return futures


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, limit_s=5):
    """A child that is still importing sees the end of its pipe a moment later."""
    return any(not any(map(alive, pids)) for _ in rounds(limit_s))
