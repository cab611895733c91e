"""The HTTP process: binds, starts the engine's process, listens, and ends in order. Knows no route and no tensor.

It ends when it is told to (exit code 0; the first SIGTERM, SIGINT or SIGHUP lets what runs come to its end, the second
does not), or when its engine has ended (1, or 2 when the model could not be loaded).
"""
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from gramme.config import ConfigError, EngineConfig, ModelError
from gramme.llm.report import Facts, report, surprising, text
from gramme.models.open import open_model
from gramme.plan import check
from gramme.plan.hardware import this_machine
from gramme.serve import faults
from gramme.serve.app import Server, slo_ttft_s
from gramme.serve.async_llm import AsyncLLM
from gramme.serve.connection import Limits, protocol
from gramme.serve.guard import PUBLIC, Guard, read_keys
from gramme.serve.log import Log
from gramme.serve.messages import Ready
from gramme.serve.options import ServeOptions
from gramme.text.chat import open_chat
from gramme.text.tokenizer import load_tokenizer

LINGER_S = 1.0  # after the engine's end: waiters get their answers, probes see that we are dead
CLOSE_S = 1  # for connections to take their last bytes
BACKLOG = 512
LEAST_PROMPT = 64  # tokens of a step that teaches how fast prompts are
QUIET = PUBLIC - {"/"}  # probes come every second


def serve(config: EngineConfig, options: ServeOptions) -> int:
    """HTTP answers while the engine loads; /health/ready says when it is ready. Returns the exit code.

    Raises ConfigError or ModelError, with one line, when it cannot start.
    """
    faults.install_server(os.environ.get("GRAMME_FAULTS", ""))
    read_keys(options)
    slo_ttft_s(options)
    sock = _bind(options.host, options.port)
    opened = open_model(config)
    tokenizer = load_tokenizer(opened.text)
    log = _log()
    llm, chat_form = AsyncLLM(config, options.stall_limit_s), open_chat(opened.text, config.chat_template)
    server = Server(llm, tokenizer, chat_form, options.served_model_name or opened.name, options)
    note = lambda record: log.write(**record) if options.access_log and record["path"] not in QUIET else None
    limits = Limits(options.max_connections, options.header_limit_s, options.write_limit_s)
    guard = Guard(server.app(), options, note, server.check_room)
    listener = Listener(uvicorn.Config(
        guard, http=protocol(limits), ws="none", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, backlog=BACKLOG, timeout_graceful_shutdown=CLOSE_S), server, options, log)
    listener.run(sockets=[sock])
    _check_predictions(server, options, log)
    log.drain()
    if llm.failed is not None and llm.failed.user:
        raise ModelError(llm.failed.message)
    return listener.exit_code


def _check_predictions(server: Server, options: ServeOptions, log: Log) -> None:
    if server.llm.ready is None:
        return
    hardware, ready = this_machine(), server.llm.ready
    checks = server.outlook.checks(ready.model, hardware, options.calibration)
    for c in checks if options.verbose else ():
        log.write(level="info", message="predicted and measured", phase=c.phase, tokens=c.work.tokens,
                  predicted_ms=round(1e3 * c.predicted.seconds, 3), measured_ms=round(1e3 * c.measured_s, 3),
                  error=round(c.error, 3))
    if options.calibration:
        check.learn(ready.plan, hardware, [c for c in checks if c.phase == "decode" or c.work.tokens >= LEAST_PROMPT])


class Listener(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, server: Server, options: ServeOptions, log: Log):
        super().__init__(config)
        self.exit_code = 0
        self._server, self._options, self._log = server, options, log
        self._signals, self._restarts = 0, int(options.restart)
        self._ended_s: float | None = None  # when the engine was found dead
        self._drain_end_s = 0.0
        self._greeted: Ready | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's two, and the terminal's end where it is not ignored, as nohup has it; SIGUSR1 means nothing."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
        with super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        await super().on_tick(counter)
        self._greet()
        if self._signals:
            return self._drained()
        if self._server.llm.ended.is_set():
            return await self._bury()
        return False

    def _greet(self) -> None:
        """Once for each engine, as soon as it is ready: what was asked for and does not act, with --verbose the whole
        report, which is at /v1/status too; then where to find it."""
        ready, config = self._server.llm.ready, self._server.llm.config
        if ready is None or ready is self._greeted:
            return
        self._greeted = ready
        facts = Facts(config, ready.model, ready.plan, ready.loaded, self._server.llm.stats)
        lines = report(facts)
        for line in text(lines if self._options.verbose else surprising(lines)):
            self._log.say(line)
        self._log.say(f"{self._server.model} is ready at {url(self._options.host, self._options.port)}")

    def _drained(self) -> bool:
        now_s = time.monotonic()
        if not self._server.draining:
            self._server.draining, self._drain_end_s = True, now_s + self._options.drain_limit_s
        idle = self._server.admission.outstanding == 0
        if not idle and self._signals == 1 and now_s < self._drain_end_s and not self._server.llm.ended.is_set():
            return False
        self._server.llm.give_up()
        return True

    async def _bury(self) -> bool:
        failed, now_s = self._server.llm.failed, time.monotonic()
        if self._ended_s is None:
            self._ended_s = now_s
        if self._ended_s == now_s and not (failed and failed.user):  # that one the command line says
            self._log.write(level="error", message=failed.message if failed else "the engine process ended")
        if self._restarts and not (failed and failed.user):
            self._restarts -= 1
            self._ended_s = None
            await self._server.llm.restart()
            return False
        self.exit_code = 1
        return now_s > self._ended_s + LINGER_S or bool(failed and failed.user)


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds a server that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, before anything is loaded: a port that is taken is found at once."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None


def _log() -> Log:
    log = Log()
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [log], False
        logger.setLevel(logging.WARNING)
    return log
