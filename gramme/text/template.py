"""Chat templates: finding a model's, and rendering it in a child process that can be killed. Standard library only."""
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gramme.config import ModelError
from gramme.request import RequestError
from gramme.text.source import Metadata, TextSource, read_text

CHILD = Path(__file__).with_name("template_child.py")
RENDER_LIMIT_S = 2.0
START_LIMIT_S = 20.0


class TemplateRenderer:
    """Starts its child at once, so that it is ready when the model is. Ends with `close` or with this process."""

    def __init__(self, limit_s: float = RENDER_LIMIT_S):
        self._limit_s, self._ready, self._lock = limit_s, False, threading.Lock()
        self._child = _spawn()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Raises RequestError when the template fails or takes longer than the limit."""
        try:
            request = json.dumps({"template": template, "variables": variables}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages and tools must be JSON: {error!s:.100}", "messages") from None
        with self._lock:
            answer = self._answer(request)
        if "error" in answer:
            raise RequestError(f"the chat template failed: {answer['error']}", "messages")
        return str(answer["text"])

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            if not self._ready:
                self._receive(time.monotonic() + START_LIMIT_S)
                self._ready = True
            return self._exchange(request, time.monotonic() + self._limit_s)
        except OSError as error:  # TimeoutError is one
            self._replace()
            slow = isinstance(error, TimeoutError)
            what = f"took longer than {self._limit_s:g} s" if slow else "ended its process"
            raise RequestError(f"the chat template {what}", "messages") from None

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # what the child did not read is still in the buffer
                    pipe.close()

    def _replace(self) -> None:
        self.close()
        self._child, self._ready = _spawn(), False

    def _exchange(self, request: bytes, end_s: float) -> dict[str, Any]:
        assert self._child.stdin
        self._child.stdin.write(len(request).to_bytes(4, "big") + request)
        self._child.stdin.flush()
        return self._receive(end_s)

    def _receive(self, end_s: float) -> dict[str, Any]:
        length = int.from_bytes(self._read(4, end_s), "big")
        answer: dict[str, Any] = json.loads(self._read(length, end_s))
        return answer

    def _read(self, count: int, end_s: float) -> bytes:
        assert self._child.stdout
        out, fd = b"", self._child.stdout.fileno()
        while len(out) < count:
            if not select.select([fd], [], [], max(0, end_s - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(fd, count - len(out))
            if not part:
                raise BrokenPipeError
            out += part
        return out


def _spawn() -> subprocess.Popen[bytes]:
    """In a process group of its own: Ctrl-C is for us. It ends when its standard input does."""
    return subprocess.Popen([sys.executable, "-E", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, process_group=0)


def find_template(source: TextSource, override: str | None = None, name: str = "default") -> str | None:
    """The user's file, chat_template.jinja, tokenizer_config.json's chat_template or GGUF's; None when there is none.

    `name` may be that of another template, such as "tool_use": additional_chat_templates/NAME.jinja, or the one of that
    name in tokenizer_config.json or in GGUF's metadata. Raises ModelError naming the file that cannot be read.
    """
    if override is not None:
        return _read_template(Path(override))
    return _gguf_template(source, name) if isinstance(source, Metadata) else _directory_template(source, name)


def _gguf_template(metadata: Metadata, name: str) -> str | None:
    found = metadata.values.get("tokenizer.chat_template" + ("" if name == "default" else f".{name}"))
    return found if isinstance(found, str) else None


def _directory_template(directory: Path, name: str) -> str | None:
    path = directory / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
    if path.is_file():
        return _read_template(path)
    path = directory / "tokenizer_config.json"
    try:
        found = json.loads(read_text(path)).get("chat_template")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error!s:.80}") from None
    named = {"default": found} if isinstance(found, str) else _named(found)
    return named.get(name)


def _named(listed: Any) -> dict[str, str]:
    """tokenizer_config.json's list of {name, template}; the first is the default where none has that name."""
    entries = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    named = {str(t.get("name")): t["template"] for t in entries if isinstance(t.get("template"), str)}
    return {"default": next(iter(named.values()))} | named if named else {}


def _read_template(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"chat template {path}: {error}") from None
