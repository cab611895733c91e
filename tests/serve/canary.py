"""The check after every bad input and every fault: the same server, ready, with the same answer, nothing left."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from serve_process import Served

__all__ = ["ASK", "SECRET", "TINY", "Canary", "Served"]

TINY = ("dummy:tiny", "--max-model-len", "512")
SECRET = re.compile(r"Traceback|0x[0-9a-f]{8,}|/(?:home|root)/|site-packages|sk-|Bearer ")
ASK = {"prompt": [3, 4, 5], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


class Canary:
    """Holds the answer of a quiet server; `check` says that it is still the same server and as well as before."""

    def __init__(self, served, headers=None):
        self.served, self.headers = served, headers
        self.tokens, self.engine = self.ask(), served.engine()

    def ask(self):
        status, reply = self.served.post("/v1/completions", ASK, self.headers)
        assert status == 200, reply
        return reply["choices"][0]["token_ids"]

    def check(self):
        assert self.served.process.poll() is None and self.served.engine() == self.engine, "another process"
        assert self.served.get("/health/ready")[0] == 200
        assert self.ask() == self.tokens
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        self.served.wait_for(lambda: not any(self.served.metric(n) for n in names), 10)
