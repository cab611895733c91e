"""Life and death of the two processes, and faults put into them from outside: by signals, descriptors and limits."""
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from canary import ASK, SECRET, TINY, Canary, Served

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
    end_s = time.monotonic() + limit_s
    while any(map(alive, pids)) and time.monotonic() < end_s:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_sigterm_lets_what_runs_end_and_refuses_what_is_new():
    with Served(*TINY, env=SLOW) as s:
        futures, children = started(s, 4), s.children()
        s.process.send_signal(signal.SIGTERM)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503, 2)
        assert s.post("/v1/completions", ASK)[0] == 503
        for status, events in (f.result() for f in futures):
            assert status == 200 and events[-1] == b"[DONE]" and not ends_with_error(events)
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert s.process.wait(10) == 0 and not any(map(alive, children))
        again = subprocess.run([sys.executable, "-c", f"import socket; socket.create_server(('127.0.0.1', {s.port}))"])
        assert again.returncode == 0


def test_a_second_sigterm_ends_at_once():
    with Served(*TINY, env=SLOW) as s:
        futures, children = started(s, 2), s.children()
        s.process.send_signal(signal.SIGTERM)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503, 2)
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(4) == 0
        assert all(ends_with_error(f.result()[1]) for f in futures) and not any(map(alive, children))


def test_when_the_engine_is_killed_all_waiters_are_answered_and_the_server_ends():
    with Served(*TINY, env=SLOW) as s:
        futures = started(s, 3)
        os.kill(s.engine(), signal.SIGKILL)
        began_s = time.monotonic()
        assert all(ends_with_error(f.result()[1]) for f in futures) and time.monotonic() - began_s < 3
        assert s.get("/health/live")[0] == 503
        assert s.process.wait(10) == 1


def test_an_engine_that_raises_is_started_once_more(tmp_path):
    with open(tmp_path / "log", "wb") as log, Served(
            *TINY, "--restart", env={"GRAMME_FAULTS": "raise:20"}, stderr=log) as s:
        assert ends_with_error(stream(s)[1])
        s.wait_ready()
        assert s.post("/v1/completions", ASK)[0] == 200
        assert ends_with_error(stream(s)[1])
        assert s.process.wait(10) == 1
        assert "RuntimeError in the engine" in (tmp_path / "log").read_text()


def test_an_engine_that_stands_still_is_not_ready_and_loses_nothing():
    with Served(*TINY, "--stall-limit-s", "1", env=SLOW) as s:
        canary = Canary(s)
        [future] = started(s, 1)
        os.kill(s.engine(), signal.SIGSTOP)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503)
        assert s.get("/health/live")[0] == 200
        os.kill(s.engine(), signal.SIGCONT)
        assert not ends_with_error(future.result()[1])
        s.wait_for(lambda: s.get("/health/ready")[0] == 200)
        time.sleep(1.5)  # idle for longer than the limit
        canary.check()


def test_an_engine_that_never_moves_again_is_killed():
    with Served(*TINY, "--stall-limit-s", "0.2") as s:
        os.kill(s.engine(), signal.SIGSTOP)
        assert s.process.wait(15) == 1


def test_steps_that_run_nothing_are_no_progress():
    with Served(*TINY, "--stall-limit-s", "0.3", env={"GRAMME_FAULTS": "stuck"}) as s, ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream, s)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503)
        assert s.process.wait(15) == 1 and ends_with_error(future.result()[1])


def test_what_clients_send_makes_no_labels():
    with Served(*TINY) as s:
        lines = lambda: len(s.get("/metrics")[1].splitlines())
        Canary(s)
        before = lines()
        for i in range(50):
            s.post("/v1/completions", {**ASK, "user": f"u{i}", "metadata": {"k": str(i)}, "model": f"m{i}"})
            s.post("/v1/completions", {**ASK, "user": f"u{i}", "max_tokens": 1})
        assert lines() == before


def test_children_end_with_their_parent():
    with Served(*TINY, env=SLOW) as s:
        started(s, 1)
        children = s.children()
        assert len(children) == 2
        s.process.kill()
        s.process.wait()
        assert gone(children)


def test_the_template_child_is_replaced():
    with Served(*TINY) as s:
        ask = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        assert s.post("/v1/chat/completions", ask)[0] == 200
        [child] = [p for p in s.children() if p != s.engine()]
        os.kill(child, signal.SIGKILL)
        assert s.post("/v1/chat/completions", ask)[0] in (200, 400)  # the one that finds it dead may fail
        assert s.post("/v1/chat/completions", ask)[0] == 200


def test_rows_that_are_not_finite_end_their_own_request_only():
    bodies = [{**ASK, "prompt": [7 if i == 3 else 20 + i, 4], "max_tokens": 20} for i in range(6)]
    with Served(*TINY) as clean:
        wanted = [clean.post("/v1/completions", b) for b in bodies]
    with Served(*TINY, env={"GRAMME_FAULTS": "nan:6,7"}) as s, ThreadPoolExecutor(6) as pool:
        canary = Canary(s)
        got = list(pool.map(lambda b: s.post("/v1/completions", b), bodies))
        assert [status for status, _ in got] == [200, 200, 200, 500, 200, 200]
        assert got[3][1]["error"]["code"] == "engine_error"
        tokens = lambda reply: reply[1]["choices"][0]["token_ids"]
        assert all(tokens(a) == tokens(b) for i, (a, b) in enumerate(zip(wanted, got)) if i != 3)
        assert ends_with_error(stream(s, bodies[3] | {"stream": True})[1])
        canary.check()


@pytest.mark.parametrize("faults", ["pages:60", "slow:20"])
def test_missing_pages_and_delays_change_no_token(faults):
    bodies = [{**ASK, "prompt": list(range(3, 10 + 9 * i)), "max_tokens": 24} for i in range(6)]
    with Served(*TINY) as clean:
        wanted = [clean.post("/v1/completions", b)[1]["choices"][0]["token_ids"] for b in bodies]
    with Served(*TINY, env={"GRAMME_FAULTS": faults}) as s, ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda b: s.post("/v1/completions", b)[1]["choices"][0]["token_ids"], bodies))
        assert got == wanted
        assert faults != "pages:60" or s.metric("num_preemptions_total") > 0


def test_a_request_that_breaks_its_own_admission_fails_alone():
    with Served(*TINY, env={"GRAMME_FAULTS": "refuse"}, stderr=subprocess.DEVNULL) as s:
        canary = Canary(s)
        status, reply = s.post("/v1/completions", {**ASK, "prompt": [13]})
        assert status == 500 and not SECRET.search(json.dumps(reply))
        canary.check()


def test_the_queue_is_bounded_and_says_when_to_come_back():
    with Served(*TINY, "--max-num-seqs", "1", "--max-queue", "3") as s, ThreadPoolExecutor(20) as pool:
        body = json.dumps({**LONG, "stream": False, "max_tokens": 150})
        head = {"content-type": "application/json"}
        replies = list(pool.map(lambda _: s.request("POST", "/v1/completions", body, head), range(20)))
        refused = [headers for status, headers, _ in replies if status == 429]
        assert sorted(status for status, _, _ in replies) == [200] * 4 + [429] * 16
        assert all(int(h["retry-after"]) >= 1 for h in refused)
        Canary(s).check()


def test_where_there_is_no_room_a_body_is_not_even_awaited():
    with Served(*TINY, "--max-num-seqs", "1", "--max-queue", "0", env=SLOW) as s:
        [future] = started(s, 1)
        with socket.create_connection(("127.0.0.1", s.port), timeout=20) as waiting:
            waiting.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
            assert waiting.recv(4096).startswith(b"HTTP/1.1 429 ")
        assert s.post("/tokenize", {"prompt": "a"})[0] == 200
        assert not ends_with_error(future.result()[1])


def test_waiting_and_running_have_limits():
    with Served(*TINY, "--max-num-seqs", "1", "--queue-limit-s", "0.1", env=SLOW) as s:
        [future] = started(s, 1)
        status, reply = s.post("/v1/completions", ASK)
        assert (status, reply["error"]["code"]) == (503, "queue_timeout") and not ends_with_error(future.result()[1])
    with Served(*TINY, "--run-limit-s", "0.2", env={"GRAMME_FAULTS": "slow:20"}) as s:
        assert ends_with_error(stream(s)[1])
        assert s.post("/v1/completions", {**LONG, "stream": False})[0] == 504


def test_a_log_that_nobody_reads_and_a_full_disk_stop_nothing():
    read, write = os.pipe()
    with Served(*TINY, stderr=write) as s:
        for _ in range(1500):  # 64 kB of pipe take some 400 lines
            assert s.get("/health/live")[0] == 200
        Canary(s).check()
    os.close(write)
    os.close(read)
    with open("/dev/full", "wb") as full, Served(*TINY, stderr=full) as s:
        Canary(s).check()


def test_when_descriptors_run_out_the_server_lives():
    with Served(*TINY) as s:
        canary = Canary(s)
        resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(60)]
        time.sleep(0.3)
        for h in held:
            h.close()
        s.wait_ready()
        canary.check()


def run(*args, env=None, limit_s=20):
    command = [sys.executable, "-m", "gramme", "serve", *args]
    return subprocess.run(command, capture_output=True, timeout=limit_s, env={**os.environ, **(env or {})})


def test_what_cannot_start_says_so_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weak").write_text("abc\n")
    with Served(*TINY) as s:
        cases = [(*TINY, "--port", str(s.port)), (*TINY, "--host", "0.0.0.0"), (str(tmp_path),),
                 ("dummy:nothing",), (*TINY, "--api-key-file", str(tmp_path / "weak")),
                 (*TINY, "--port", "0", "--memory", "1MB")]
        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(lambda case: run(*case), cases):
                assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("delay_s", [0.05, 0.4, 0.8])
def test_sigterm_while_starting_leaves_no_orphan(delay_s):
    with Served(*TINY, wait=False) as s:
        time.sleep(delay_s)
        children = s.children()
        s.process.send_signal(signal.SIGTERM)
        s.process.wait(10)
        assert gone(children)


def test_other_signals_are_survived_or_defined():
    with Served(*TINY) as s:
        canary = Canary(s)
        s.process.send_signal(signal.SIGPIPE)
        canary.check()
        s.process.send_signal(signal.SIGINT)
        assert s.process.wait(10) == 0
    assert threading.active_count() < 50
