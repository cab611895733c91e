"""The chat page: one file, and the header that lets a browser run its own script and style and nothing else."""
import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")


def page() -> Response:
    html, policy = _read()
    return Response(html, media_type="text/html; charset=utf-8", headers={
        "content-security-policy": policy, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff",
        "cache-control": "no-cache"})


@cache
def _read() -> tuple[bytes, str]:
    """The file, and a policy that names its script and its style by their SHA-256 (w3.org/TR/CSP3)."""
    html = FILE.read_bytes()
    sources = {tag: " ".join(f"'sha256-{_digest(text)}'" for text in _inside(html, tag)) for tag in ("script", "style")}
    return html, (f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
                  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _inside(html: bytes, tag: str) -> list[bytes]:
    return re.findall(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), html, re.DOTALL)


def _digest(text: bytes) -> str:
    return base64.b64encode(hashlib.sha256(text).digest()).decode()
