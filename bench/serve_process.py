"""A `gramme serve` of its own process for load tests and tests: started on a free port, waited for, ended."""
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def rounds(limit_s, each_s=0.05):
    """Short sleeps, as many as fit into a limit: while everything is stopped, the server too, no time passes."""
    for _ in range(int(limit_s / each_s)):
        yield
        time.sleep(each_s)


class Served:
    """`with Served("dummy:tiny", "--kv-tokens", "1024") as s: s.post("/v1/completions", {...})`."""

    def __init__(self, *args, env=None, wait=True, stderr=None, **popen):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [sys.executable, "-m", "gramme", "serve", *args, "--port", str(self.port)]
        quiet = {"OPENBLAS_NUM_THREADS": "1"}  # two spinning threads on shared cores cost ten times the work
        self.process = subprocess.Popen(command, env={**os.environ, **quiet, **(env or {})}, stderr=stderr, **popen)
        self.url = f"http://127.0.0.1:{self.port}"
        if wait:
            self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.terminate()  # a second one: do not wait for what runs
        try:
            self.exit_code(20)
        except TimeoutError:
            self.process.kill()
            self.process.wait()

    def wait_ready(self, limit_s=60):
        self.wait_for(lambda: self.get("/health/ready")[0] == 200, limit_s)

    def wait_for(self, true, limit_s=10):
        """Raises RuntimeError when the server ends first."""
        for _ in rounds(limit_s):
            try:
                if true():
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
        raise TimeoutError("what was waited for did not come true")

    def exit_code(self, limit_s=10):
        """The server's, when it has ended."""
        for _ in rounds(limit_s):
            if self.process.poll() is not None:
                return self.process.returncode
        raise TimeoutError("the server did not end")

    def request(self, method, path, body=None, headers=None, timeout=300):
        """(status, headers, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def get(self, path, **more):
        status, _, body = self.request("GET", path, **more)
        return status, body.decode()

    def post(self, path, body, headers=None, **more):
        """(status, parsed JSON)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, reply = self.request(
            "POST", path, data, {"content-type": "application/json"} | (headers or {}), **more)
        return status, json.loads(reply)

    def metric(self, name):
        lines = self.get("/metrics")[1].splitlines()
        return float(next(x for x in lines if x.startswith(f"gramme:{name}{{")).split()[-1])

    def children(self, pid=None):
        """Process ids below the server."""
        pid = pid or self.process.pid
        direct = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
        return direct + [q for p in direct for q in self.children(p)]

    def engine(self):
        """The engine's process id."""
        return next(p for p in self.children() if "gramme.serve.worker" in Path(f"/proc/{p}/cmdline").read_text())
