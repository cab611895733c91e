"""The faults of robustness, F1 to F20, each put in from outside what must survive it, and the canary after each.

    F1   a step raises                           raise        answered at once, live 503; started once more
    F2   one row's choice, text or entry raises  choose, detokenize, refuse     that request alone fails
    F3   logits that are not finite              nan          that request alone fails, the others' tokens stay
    F4   no memory on the device                 oom          the step runs in halves; who never fits fails alone
    F5   SIGKILL to engine, template child                    waiters answered at once; the child is replaced
    F6   SIGSTOP, SIGCONT to the engine                       not ready, then ready, no request lost
    F7   SIGKILL to the server                                its children end
    F8   steps that run nothing                  stuck        not ready, then killed, waiters answered
    F9   no page, now and then                   pages        preempted, same tokens
    F10  delays at each step and hop             slow, late   no deadlock, same tokens
    F11  aborts lost, twice, late                aborts       nothing is left behind
    F12  full disk, no descriptors, files capped              served, without what it could not write
    F13  the wall clock jumps                    clock        no limit notices
    F14  port taken, no GPU, one core, little memory          one line at start, or served
    F15  the asked backend is not there                       one line at start; faults of a GPU: tests/kernels/cuda
    F16  SIGTERM while starting, and under load               ends in order, no orphan
    F17  SIGINT, SIGHUP, SIGPIPE, SIGUSR1                     ends in order, or nothing
    F18  a log that nobody reads                              lines are lost, nothing else
    F19  labels that clients send                             none is made
    F20  another start beside it, failing                     serving does not notice
"""
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from canary import ASK, SECRET, TINY, Canary, Served
from serve_process import rounds
from streams import LONG, SLOW, ends_with_error, gone, started, stream

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
MANY = [{**ASK, "prompt": list(range(3, 10 + 9 * i)), "max_tokens": 24} for i in range(6)]
MARKED = {**ASK, "prompt": [13, 5]}


def faults(spec):
    return {"GRAMME_FAULTS": spec}


def tokens(reply):
    return reply[1]["choices"][0]["token_ids"]


def asked_at_once(served, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: served.post("/v1/completions", body), bodies))


@pytest.fixture(scope="module")
def undisturbed(served):
    """The tokens of MANY without a fault."""
    return [tokens(served.post("/v1/completions", body)) for body in MANY]


def test_f1_a_step_that_raises_ends_the_engine_and_it_is_started_once_more(tmp_path):
    with open(tmp_path / "log", "wb") as log, Served(*TINY, "--restart", env=faults("raise:20"), stderr=log) as s:
        first = s.engine()
        assert ends_with_error(stream(s)[1])
        s.wait_for(lambda: first not in s.children() and s.get("/health/ready")[0] == 200, 60)
        assert s.post("/v1/completions", ASK)[0] == 200
        assert ends_with_error(stream(s)[1])
        assert s.exit_code() == 1
        assert "RuntimeError in the engine" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("fault, body", [
    ("refuse", MARKED), ("choose", MARKED), ("choose", {**MARKED, "structured_outputs": {"regex": "[ab]+"}}),
    ("detokenize", {**ASK, "allowed_token_ids": [13]}),
])
def test_f2_what_breaks_on_one_request_fails_alone(fault, body):
    with Served(*TINY, env=faults(fault), stderr=subprocess.DEVNULL) as s:
        canary = Canary(s)
        beside = started(s, 2, {**LONG, "max_tokens": 100}) if fault != "refuse" else []
        status, reply = s.post("/v1/completions", body)
        assert status == 500 and not SECRET.search(json.dumps(reply))
        assert ends_with_error(stream(s, body | {"stream": True})[1]) or fault == "refuse"
        assert not any(ends_with_error(f.result()[1]) for f in beside)
        canary.check()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_f3_rows_that_are_not_finite_end_their_own_request_only(served, value):
    bodies = [{**ASK, "prompt": [7 if i == 3 else 20 + i, 4], "max_tokens": 20} for i in range(6)]
    wanted = [served.post("/v1/completions", body) for body in bodies]
    with Served(*TINY, env=faults(f"nan:6,7,{value}")) as s:
        canary = Canary(s)
        got = asked_at_once(s, bodies)
        assert [status for status, _ in got] == [200, 200, 200, 500, 200, 200]
        assert got[3][1]["error"]["code"] == "engine_error"
        assert all(tokens(a) == tokens(b) for i, (a, b) in enumerate(zip(wanted, got)) if i != 3)
        assert ends_with_error(stream(s, bodies[3] | {"stream": True})[1])
        canary.check()


def test_f4_no_memory_makes_smaller_steps_and_fails_only_who_never_fits(undisturbed):
    with Served(*TINY, env=faults("oom:3"), stderr=subprocess.DEVNULL) as s:
        canary = Canary(s)
        got = asked_at_once(s, [*MANY, MARKED])
        assert [tokens(reply) for reply in got[:-1]] == undisturbed
        assert got[-1][0] == 500 and "memory" in got[-1][1]["error"]["message"]
        canary.check()


def test_f5_when_the_engine_is_killed_all_waiters_are_answered_and_the_server_ends():
    with Served(*TINY, env=SLOW) as s:
        futures = started(s, 3)
        os.kill(s.engine(), signal.SIGKILL)
        assert all(ends_with_error(f.result()[1]) for f in futures)
        assert s.get("/health/live")[0] == 503
        assert s.exit_code() == 1


def test_f5_the_template_child_is_replaced(served, canary):
    assert served.post("/v1/chat/completions", CHAT)[0] == 200
    [child] = [p for p in served.children() if p != served.engine()]
    os.kill(child, signal.SIGKILL)
    assert served.post("/v1/chat/completions", CHAT)[0] in (200, 400)  # the one that finds it dead may fail
    assert served.post("/v1/chat/completions", CHAT)[0] == 200
    canary.check()


def test_f6_an_engine_that_stands_still_is_not_ready_and_loses_nothing():
    with Served(*TINY, "--stall-limit-s", "1", env=SLOW) as s:
        canary = Canary(s)
        [future] = started(s, 1)
        os.kill(s.engine(), signal.SIGSTOP)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503)
        assert s.get("/health/live")[0] == 200
        os.kill(s.engine(), signal.SIGCONT)
        assert not ends_with_error(future.result()[1])
        s.wait_for(lambda: s.get("/health/ready")[0] == 200)
        for _ in rounds(1.5):  # idle for longer than the limit
            pass
        canary.check()


def test_f6_an_engine_that_never_moves_again_is_killed():
    with Served(*TINY, "--stall-limit-s", "0.2") as s:
        os.kill(s.engine(), signal.SIGSTOP)
        assert s.exit_code(15) == 1


def test_f7_children_end_with_their_parent():
    with Served(*TINY, env=SLOW) as s:
        started(s, 1)
        children = s.children()
        assert len(children) == 2
        s.process.kill()
        s.process.wait()
        assert gone(children)


def test_f8_steps_that_run_nothing_are_no_progress():
    with Served(*TINY, "--stall-limit-s", "0.3", env=faults("stuck")) as s, ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream, s)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503)
        assert s.exit_code(15) == 1 and ends_with_error(future.result()[1])


@pytest.mark.parametrize("spec", ["pages:60", "slow:20", "late:20", "slow:5;late:5;pages:30"])
def test_f9_f10_missing_pages_and_delays_change_no_token(undisturbed, spec):
    with Served(*TINY, env=faults(spec)) as s:
        assert [tokens(reply) for reply in asked_at_once(s, MANY)] == undisturbed
        assert spec != "pages:60" or s.metric("num_preemptions_total") > 0
        Canary(s).check()


def test_f11_aborts_that_are_lost_or_come_twice_or_late_leave_nothing_behind():
    with Served(*TINY, env=faults("aborts;slow:5")) as s:
        canary = Canary(s)
        for _ in range(7):
            with socket.create_connection(("127.0.0.1", s.port)) as leaving:
                body = json.dumps({**LONG, "max_tokens": 60}).encode()
                leaving.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                                b"Content-Type: application/json\r\n"
                                b"Content-Length: %d\r\n\r\n" % len(body) + body)
                leaving.recv(100)
        canary.check()


def limited(what, limit):
    """What a child does before it becomes the server."""
    return {"preexec_fn": lambda: resource.setrlimit(what, (limit, limit))}


def test_f12_full_disks_and_files_that_may_not_grow_stop_nothing(tmp_path):
    (tmp_path / "file").touch()
    cache = {"XDG_CACHE_HOME": str(tmp_path / "file")}  # no directory can be made below a file
    with open("/dev/full", "wb") as full, Served(*TINY, stderr=full, env=cache) as s:
        Canary(s).check()
    with open(tmp_path / "log", "wb") as log, Served(*TINY, stderr=log, **limited(resource.RLIMIT_FSIZE, 100)) as s:
        canary = Canary(s)
        assert s.post("/v1/chat/completions", CHAT)[0] == 200
        canary.check()


def test_f12_when_descriptors_run_out_the_server_lives():
    with Served(*TINY) as s:
        canary = Canary(s)
        resource.prlimit(s.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(60)]
        for _ in rounds(0.3):
            pass
        for h in held:
            h.close()
        s.wait_ready()
        canary.check()


def test_f13_no_limit_looks_at_the_wall_clock():
    with Served(*TINY, "--queue-limit-s", "60", "--run-limit-s", "600", env=faults("clock:3600")) as s:
        canary = Canary(s)
        for _ in range(5):
            assert not ends_with_error(stream(s)[1]) and s.get("/health/ready")[0] == 200
            assert s.post("/v1/chat/completions", CHAT)[0] == 200
        canary.check()


def run(*args):
    command = [sys.executable, "-m", "gramme", "serve", *args]
    return subprocess.run(command, capture_output=True, timeout=300)


def test_f14_f15_f20_what_cannot_start_says_so_in_one_line_and_disturbs_nobody(served, canary, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weak").write_text("abc\n")
    cases = [(*TINY, "--port", str(served.port)), (*TINY, "--host", "0.0.0.0"), (str(tmp_path),), ("dummy:nothing",),
             (*TINY, "--api-key-file", str(tmp_path / "weak")), (*TINY, "--port", "0", "--memory", "1MB"),
             (*TINY, "--port", "0", "--backend", "cuda"), (*TINY, "--host", "no.such.host.invalid")]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda case: run(*case), cases):
            assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
            assert b"Traceback" not in done.stderr
    canary.check()


def test_f14_one_core_and_little_memory_are_enough():
    with Served(*TINY, preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) as s:
        Canary(s).check()
    with Served(*TINY, "--kv-tokens", "1024", **limited(resource.RLIMIT_DATA, 1 << 30)) as s:
        Canary(s).check()


@pytest.mark.parametrize("delay_s", [0.05, 0.4, 0.8])
def test_f16_sigterm_while_starting_leaves_no_orphan(delay_s):
    with Served(*TINY, wait=False) as s:
        for _ in rounds(delay_s):
            pass
        children = s.children()
        s.process.send_signal(signal.SIGTERM)
        s.exit_code()
        assert gone(children)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGHUP])
def test_f17_other_signals_end_in_order_or_mean_nothing(sig):
    with Served(*TINY, "--drain-limit-s", "600", env=SLOW, process_group=0) as s:
        canary = Canary(s)
        for nothing in (signal.SIGPIPE, signal.SIGUSR1):
            s.process.send_signal(nothing)
        canary.check()
        [future] = started(s, 1)
        os.killpg(s.process.pid, sig)  # as a terminal does
        assert not ends_with_error(future.result()[1])
        assert s.exit_code() == 0


def test_f17_a_second_interrupt_ends_at_once():
    with Served(*TINY, env=SLOW) as s:
        [future], children = started(s, 1), s.children()
        s.process.send_signal(signal.SIGINT)
        s.wait_for(lambda: s.get("/health/ready")[0] == 503)
        s.process.send_signal(signal.SIGINT)
        assert s.exit_code() == 0 and ends_with_error(future.result()[1]) and gone(children)


def test_f18_a_log_that_nobody_reads_stops_nothing():
    read, write = os.pipe()
    with Served(*TINY, stderr=write) as s:
        for _ in range(1500):  # 64 kB of pipe take some 400 lines
            assert s.get("/version")[0] == 200
        Canary(s).check()
    os.close(write)
    os.close(read)


def test_f19_what_clients_send_makes_no_labels(served, canary):
    lines = lambda: len(served.get("/metrics")[1].splitlines())
    before = lines()
    for i in range(50):
        served.post("/v1/completions", {**ASK, "user": f"u{i}", "metadata": {"k": str(i)}, "model": f"m{i}"})
        served.post("/v1/completions", {**ASK, "user": f"u{i}", "max_tokens": 1})
    assert lines() == before
    canary.check()


def test_every_fault_of_the_table_has_a_test():
    named = {int(part[1:]) for name in globals() if name.startswith("test_f") for part in name.split("_")
             if part[:1] == "f" and part[1:].isdigit()}
    assert named == set(range(1, 21))
    listed = [int(line.split()[0][1:]) for line in __doc__.splitlines() if line.startswith("    F")]
    assert all(b - a == 1 for a, b in pairwise([0, *listed])) and len(listed) == 20


def test_a_fault_that_there_is_not_is_refused():
    done = subprocess.run([sys.executable, "-m", "gramme", "serve", *TINY], capture_output=True, timeout=300,
                          env={**os.environ, **faults("nonsense")})
    assert done.returncode == 2 and b"nonsense" in done.stderr
