"""Who may ask, and whether there is room: request ids, Host and Origin, API keys, before any route. Plain ASGI.

Denies by default: what is not in PUBLIC needs the key, and paths are compared as the router compares them, exactly.
"""
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from gramme.config import ConfigError
from gramme.serve.errors import FORESEEN, HttpError, http_error
from gramme.serve.options import ServeOptions

PUBLIC = frozenset({"/", "/health", "/health/live", "/health/ready", "/metrics"})
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
MIN_KEY_CHARS = 8

Note = Callable[[dict[str, Any]], None]  # takes a finished request's record


class Guard:
    """`check_room` raises for a path whose requests cannot be taken now."""

    def __init__(self, app: Any, options: ServeOptions, note: Note, check_room: Callable[[str], None]):
        self._app, self._note, self._check_room = app, note, check_room
        self._keys = [_digest(k.encode()) for k in read_keys(options)]
        self._public = PUBLIC - {"/metrics"} if options.metrics_auth else PUBLIC
        self._origins = _listed(options.cors_origins)
        self._hosts = _listed(options.allowed_hosts)
        if is_loopback(options.host):
            self._hosts |= {"localhost", "127.0.0.1", "[::1]", options.host.lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_ns, record = time.monotonic_ns(), {"id": "req_" + uuid4().hex, "status": 499}
        scope["state"] |= {"request": record, "arrived_ns": arrived_ns}
        extra = [(b"x-request-id", record["id"].encode())]

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        try:
            origin = self._check_caller(scope)
            extra += self._cors(origin)
            if scope["method"] == "OPTIONS":
                await _send(answer, 204, b"", [(b"allow", b"GET, POST")])
            else:
                self._check_key(scope)
                self._check_room(scope["path"])
                await self._app(scope, receive, answer)
        except FORESEEN as error:
            made = http_error(error)
            headers = {"content-type": "application/json", "connection": "close"} | made.headers
            await _send(answer, made.status, json.dumps(made.body).encode(),
                        [(name.encode(), value.encode()) for name, value in headers.items()])
        finally:
            ms = round((time.monotonic_ns() - arrived_ns) / 1e6, 1)
            self._note(record | {"method": scope["method"], "path": scope["path"][:200], "ms": ms})

    def _check_caller(self, scope: Any) -> str | None:
        """The Host must be one of ours (else a web page could reach us through a name of its own that points here), and
        a page's Origin must be ours or allowed. Returns an allowed foreign origin."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not (match := HOST.fullmatch(hosts[0])):
            raise HttpError(400, "the request needs one well-formed Host header")
        if self._hosts and match[1].lower() not in self._hosts:
            raise HttpError(403, "this Host is not served here", "permission_error")
        origins = _values(scope, b"origin")
        if not origins or origins[0].lower() in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
            return None
        if origins[0].lower() in self._origins:
            return origins[0]
        if scope["method"] == "OPTIONS":  # a preflight is answered, and grants nothing
            return None
        raise HttpError(403, "this Origin may not call the API", "permission_error")

    def _cors(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        if origin is None:
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin"),
                (b"access-control-allow-headers", b"authorization, content-type"),
                (b"access-control-allow-methods", b"GET, POST")]

    def _check_key(self, scope: Any) -> None:
        if not self._keys or scope["path"] in self._public:
            return
        bearers = _values(scope, b"authorization")
        given = [v[7:] for v in bearers if v[:7].lower() == "bearer "] + _values(scope, b"x-api-key")
        # All keys are compared, each in constant time, so that the time tells nothing.
        right = [hmac.compare_digest(_digest(g.encode("latin-1")), key) for g in given for key in self._keys]
        if len(given) != 1 or len(bearers) > 1 or not any(right):
            raise HttpError(401, "the API key is missing or wrong", "authentication_error", code="invalid_api_key")


def read_keys(options: ServeOptions) -> list[str]:
    """The keys of flag, environment and file. Raises ConfigError where they are missing and needed, or weak."""
    keys = [options.api_key] if options.api_key else []
    if options.api_key_file:
        try:
            keys += filter(None, map(str.strip, Path(options.api_key_file).read_text("utf-8").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {options.api_key_file}: {error}") from None
    if any(len(k) < MIN_KEY_CHARS or not k.isascii() or not k.isprintable() for k in keys):
        raise ConfigError(f"API keys must have at least {MIN_KEY_CHARS} printable ASCII characters")
    if not keys and not options.insecure and not is_loopback(options.host):
        raise ConfigError(f"--host {options.host} can be reached from other machines: give --api-key-file, or say "
                          "--insecure")
    return keys


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _send(send: Any, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


def _values(scope: Any, name: bytes) -> list[str]:
    return [v.decode("latin-1").strip() for n, v in scope["headers"] if n == name]


def _listed(text: str | None) -> set[str]:
    return {part.strip().lower() for part in (text or "").split(",") if part.strip()}


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
