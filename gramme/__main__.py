"""The command `gramme`: hands over to `cli`, and makes Ctrl-C end it at any moment."""
import os
import signal
import sys
from types import FrameType


def main() -> int:
    signal.signal(signal.SIGINT, _quit)
    from gramme.cli.main import run

    return run(sys.argv[1:])


def _quit(signum: int, frame: FrameType | None) -> None:
    """End where it stands: an exception in the middle of an import or a load shows a traceback, or is swallowed.

    Whoever has something to do first, such as the server, sets a handler of its own.
    """
    os.write(2, b"\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
