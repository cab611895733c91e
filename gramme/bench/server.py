"""gramme's own server in a process of its own, for a load to be put on: started on a free port, waited for, ended."""
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from gramme.config import ConfigError

START_LIMIT_S, END_LIMIT_S = 600.0, 20.0


@contextmanager
def serving(args: Sequence[str]) -> Iterator[str]:
    """The URL of `gramme serve ARGS` once it is ready. Raises ConfigError with its last line when it does not start."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "gramme", "serve", *args, "--host", "127.0.0.1", "--port", str(port),
               "--no-access-log"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, said)
            yield url
        finally:
            _end(process)


def _wait(process: "subprocess.Popen[bytes]", url: str, said: IO[str]) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            said.seek(0)
            lines = said.read().strip().splitlines()
            raise ConfigError(lines[-1].removeprefix("gramme: ") if lines else "the server ended without a word")
        try:
            with urllib.request.urlopen(url + "/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise ConfigError(f"the server was not ready within {START_LIMIT_S:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Two signals: nothing that still runs is waited for."""
    for _ in range(2):
        process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
