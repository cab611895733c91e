"""Life and death of the two processes, the queue and its limits. What is put into them from outside: test_faults."""
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from canary import ASK, TINY, Canary, Served
from streams import LONG, SLOW, alive, ends_with_error, started, stream


def test_sigterm_lets_what_runs_end_and_refuses_what_is_new():
    with Served(*TINY, "--drain-limit-s", "600", env=SLOW) as s:
        futures, children = started(s, 4), s.children()
        s.process.send_signal(signal.SIGTERM)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503, 2)
        assert s.post("/v1/completions", ASK)[0] == 503
        for status, events in (f.result() for f in futures):
            assert status == 200 and events[-1] == b"[DONE]" and not ends_with_error(events)
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert s.exit_code() == 0 and not any(map(alive, children))
        again = subprocess.run([sys.executable, "-c", f"import socket; socket.create_server(('127.0.0.1', {s.port}))"])
        assert again.returncode == 0


def test_a_second_sigterm_ends_at_once():
    with Served(*TINY, env=SLOW) as s:
        futures, children = started(s, 2), s.children()
        s.process.send_signal(signal.SIGTERM)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503, 2)
        s.process.send_signal(signal.SIGTERM)
        assert s.exit_code(4) == 0
        assert all(ends_with_error(f.result()[1]) for f in futures) and not any(map(alive, children))


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
    with Served(*TINY, "--max-num-seqs", "1", "--queue-limit-s", "1", env={"GRAMME_FAULTS": "slow:50"}) as s:
        [future] = started(s, 1)
        status, reply = s.post("/v1/completions", ASK)
        assert (status, reply["error"]["code"]) == (503, "queue_timeout") and not ends_with_error(future.result()[1])
    with Served(*TINY, "--run-limit-s", "0.2", env={"GRAMME_FAULTS": "slow:20"}) as s:
        assert ends_with_error(stream(s)[1])
        assert s.post("/v1/completions", {**LONG, "stream": False})[0] == 504
