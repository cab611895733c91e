"""The engine process: drains messages, steps, answers once a step; blocks when idle. Knows no text."""
import ctypes
import os
import select
import signal
import socket
import sys
import traceback

from gramme.config import ConfigError, ModelError
from gramme.llm.engine import Engine
from gramme.request import RequestError
from gramme.serve import faults
from gramme.serve.messages import (
    Abort,
    Failed,
    Finish,
    Ping,
    Ready,
    Refused,
    Start,
    Submit,
    ToEngine,
    Updates,
    pack,
    to_engine,
)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Inbox:
    """Whole messages out of a byte stream."""

    def __init__(self, sock: socket.socket):
        self._sock, self._held = sock, bytearray()

    def read(self, wait: bool) -> list[ToEngine] | None:
        """The messages that have come, at least some bytes of one if `wait`; None when the other end has closed."""
        if not select.select([self._sock], [], [], None if wait else 0)[0]:
            return []
        data = self._sock.recv(1 << 20)
        if not data:
            return None
        self._held += data
        return list(self._cut())

    def _cut(self):
        while len(self._held) >= 4 and len(self._held) >= (end := 4 + int.from_bytes(self._held[:4], "little")):
            message = to_engine.decode(self._held[4:end])
            del self._held[:end]
            yield message


def run(engine: Engine, sock: socket.socket, inbox: Inbox | None = None) -> None:
    """Serve until the other end closes."""
    inbox = inbox or Inbox(sock)
    sock.sendall(pack(Updates([], engine.stats())))  # first: the report at the start is made of them
    sock.sendall(pack(Ready(engine.model, engine.plan, engine.defaults, engine.loaded)))
    while (messages := inbox.read(wait=not engine.busy and not engine.idle())) is not None:
        for message in messages:
            _handle(engine, sock, message)
        if engine.busy:
            sock.sendall(pack(Updates(engine.step(), engine.stats())))
            engine.handed_over()


def _handle(engine: Engine, sock: socket.socket, message: ToEngine) -> None:
    match message:
        case Submit(request):
            try:
                engine.add(request)
            except RequestError as error:
                sock.sendall(pack(Refused(request.id, str(error), error.param)))
            except Exception:  # one bad request fails alone
                traceback.print_exc()
                sock.sendall(pack(Refused(request.id, "internal error", None, fault=True)))
        case Abort(id):
            engine.abort(id)
        case Finish(id, index):
            engine.finish(id, index, "stop")
        case Ping():
            sock.sendall(pack(Updates([], engine.stats())))


def main() -> int:
    """0: the server has gone; 1: our fault; 2: the model cannot be run as asked."""
    _die_with_parent()
    sock = socket.socket(fileno=int(sys.argv[1]))
    inbox = Inbox(sock)
    try:
        while not (first := inbox.read(wait=True)):
            if first is None:
                return 0
        assert isinstance(first[0], Start)
        engine = Engine.load(first[0].config)
        engine.hold()
        faults.install_engine(os.environ.get("GRAMME_FAULTS", ""), engine, inbox)
        run(engine, sock, inbox)
    except (ModelError, ConfigError) as error:
        sock.sendall(pack(Failed(str(error), user=True)))
        return 2
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        traceback.print_exc()
        sock.sendall(pack(Failed(f"{type(error).__name__} in the engine")))
        return 1
    return 0


def _die_with_parent() -> None:
    """The end of the socket is seen between two steps; this also ends a step, and a load, whose server was killed."""
    for sig in (signal.SIGINT, signal.SIGHUP):  # of a terminal, go to the whole group: the server decides
        signal.signal(sig, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):  # it died before the call
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
