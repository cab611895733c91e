"""Lines of JSON on stderr, and a few for people, written by a thread: a reader that does not read costs lines, never
the server's time."""
import json
import logging
import os
import queue
import threading
import time
from datetime import UTC, datetime
from typing import Any

MAX_WAITING = 1000


class Log(logging.Handler):
    """Takes records of requests, and what libraries log. Prompts and answers never come here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._queue: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
        self._lost = 0
        threading.Thread(target=self._write, daemon=True).start()

    def write(self, **record: Any) -> None:
        self._put(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}))

    def say(self, line: str) -> None:
        """For the person who started the server, as it stands."""
        self._put(f"gramme: {line}")

    def _put(self, line: str) -> None:
        try:
            self._queue.put_nowait(line.encode() + b"\n")
        except queue.Full:
            self._lost += 1

    def emit(self, record: logging.LogRecord) -> None:
        """A library's record. Of an exception only its kind: its text may hold what a client sent."""
        kind = {"error": record.exc_info[0].__name__} if record.exc_info and record.exc_info[0] else {}
        where = {"where": _where(record.exc_info[2])} if record.exc_info and record.exc_info[2] else {}
        self.write(level=record.levelname.lower(), message=record.getMessage()[:300].strip(), **kind, **where)

    def drain(self, limit_s: float = 0.5) -> None:
        """Give the thread a moment for what is left, before the process ends."""
        end_s = time.monotonic() + limit_s
        while not self._queue.empty() and time.monotonic() < end_s:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            try:
                os.write(2, self._queue.get())
            except OSError:  # closed, or a full disk: nobody can be told
                self._lost += 1


def _where(traceback: Any) -> str:
    """Module and line of the innermost frame."""
    while traceback.tb_next:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_globals.get('__name__')}:{traceback.tb_lineno}"
