"""The engine process: drains messages, steps, answers once a step; blocks when idle. Knows no text."""
import select
import socket
import sys

from gramme.config import ConfigError, ModelError
from gramme.llm.engine import Engine
from gramme.request import RequestError
from gramme.serve.messages import (
    Abort,
    Failed,
    Finish,
    Ready,
    Refused,
    Start,
    Submit,
    ToEngine,
    Updates,
    pack,
    to_engine,
)


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
    sock.sendall(pack(Ready(engine.model, engine.plan, engine.defaults)))
    while (messages := inbox.read(wait=not engine.busy)) is not None:
        for message in messages:
            _handle(engine, sock, message)
        if engine.busy:
            sock.sendall(pack(Updates(engine.step(), engine.stats())))


def _handle(engine: Engine, sock: socket.socket, message: ToEngine) -> None:
    match message:
        case Submit(request):
            try:
                engine.add(request)
            except RequestError as error:
                sock.sendall(pack(Refused(request.id, str(error), error.param)))
        case Abort(id):
            engine.abort(id)
        case Finish(id, index):
            engine.finish(id, index, "stop")


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    inbox = Inbox(sock)
    try:
        while not (first := inbox.read(wait=True)):
            if first is None:
                return
        assert isinstance(first[0], Start)
        run(Engine.load(first[0].config), sock, inbox)
    except (ModelError, ConfigError) as error:
        sock.sendall(pack(Failed(str(error))))
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the server has gone


if __name__ == "__main__":
    main()
