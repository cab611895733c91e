"""Who may ask, how much, and how slowly: keys, hosts, origins, and sockets that do not behave."""
import json
import socket
import time
from contextlib import suppress

import pytest
from canary import ASK, TINY, Canary, Served

KEY, OTHER = "Key-of-the-test-1", "another-key-22"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n{OTHER}\n")
    with Served(*TINY, "--api-key-file", str(keys), "--cors-origins", "http://page.example", "--header-limit-s", "1.5",
                "--body-limit-s", "1.5", "--write-limit-s", "2") as s:
        yield s


@pytest.fixture(scope="module")
def canary(served):
    return Canary(served, {"authorization": f"Bearer {KEY}"})


def routes():
    """Every route, as the application has it."""
    from gramme.serve.app import ROUTES
    return ROUTES


OPEN = {"/", "/health", "/health/live", "/health/ready", "/metrics"}


@pytest.mark.parametrize("path", sorted(set(routes()) - OPEN))
def test_a_route_opens_to_a_right_key_only(served, path):
    method = routes()[path][0]
    path = path.replace("{id:path}", "dummy:tiny")
    wrong = [{}, {"authorization": "Bearer wrong-key-of-test"}, {"authorization": f"Bearer {KEY[:-1]}"},
             {"authorization": f"Bearer {KEY} x"}, {"authorization": f"Bearer {KEY.swapcase()}"},
             {"authorization": KEY}, {"authorization": "Bearer "}, {"x-api-key": KEY + "x"}]
    for headers in wrong:
        assert served.request(method, path, b"{}", headers)[0] == 401, headers
    assert served.request(method, path + "?api_key=" + KEY, b"{}")[0] == 401
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {OTHER}"}, {"x-api-key": KEY}):
        assert served.request(method, path, b"{}", headers | {"content-type": "application/json"})[0] in (200, 400)


def test_public_paths_need_no_key_and_nothing_beside_them_is_open(served):
    assert all(served.get(p)[0] == 200 for p in OPEN - {"/"})
    for path in ("//v1/models", "/v1/../v1/models", "/V1/models", "/v1/models%00", "/%2fv1/models",
                 "/health/../v1/models", "/health/x", "/metrics/", "/v1/models?/health", "/v1/models;/health", "/docs",
                 "/nowhere"):
        assert served.get(path)[0] in (401, 404), path


def raw(served, data, wait_s=5.0):
    """What the server answers to bytes before it closes, or falls silent."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=wait_s) as s:
        out = b""
        try:
            s.sendall(data)
            while part := s.recv(65536):
                out += part
        except OSError:
            pass
        return out


def status(reply):
    return int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.1 ") else None


def head(*lines, first="GET /health/live HTTP/1.1", host="127.0.0.1"):
    return "\r\n".join([first, f"Host: {host}", "Connection: close", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("host, wanted", [
    ("evil.com", 403), ("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]", 200), ("127.0.0.1.evil.com", 403),
    ("localhost.evil.com", 403), ("a/../v1?", 400), ("", 400), ("127.0.0.1\r\nHost: evil.com", 400), ("a b", 400),
])
def test_the_host_must_be_ours(served, host, wanted):
    assert status(raw(served, head(host=host))) == wanted


@pytest.mark.parametrize("origin, wanted", [
    ("http://evil.com", 403), ("null", 403), ("http://localhost.evil.com", 403), ("http://127.0.0.1.evil.com", 403),
    ("http://127.0.0.1", 200), ("http://page.example", 200),
])
def test_a_pages_origin_must_be_ours_or_allowed(served, origin, wanted):
    reply = raw(served, head(f"Origin: {origin}"))
    assert status(reply) == wanted
    assert (b"access-control-allow-origin: http://page.example\r\n" in reply) == ("page" in origin)
    assert b"access-control-allow-credentials" not in reply and b"allow-origin: *" not in reply
    preflight = raw(served, head(f"Origin: {origin}", "Access-Control-Request-Method: POST",
                                 first="OPTIONS /v1/completions HTTP/1.1"))
    assert status(preflight) == 204 and (b"access-control-allow-origin" in preflight) == ("page" in origin)


POST = "POST /v1/completions HTTP/1.1"
AUTH = (f"Authorization: Bearer {KEY}", "Content-Type: application/json")
RAW = {
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, {400, None}),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", {400, None}),
    "noise": (bytes(range(256)) * 4, {400, None}),
    "length abc": (head(*AUTH, "Content-Length: abc", first=POST), {400}),
    "length empty": (head(*AUTH, "Content-Length:", first=POST), {400}),
    "length -1": (head(*AUTH, "Content-Length: -1", first=POST), {400}),
    "length +5": (head(*AUTH, "Content-Length: +5", first=POST) + b"{}   ", {400}),
    "length 5, 5": (head(*AUTH, "Content-Length: 5, 5", first=POST) + b"{}   ", {400}),
    "two lengths": (head(*AUTH, "Content-Length: 5", "Content-Length: 2", first=POST) + b"{}   ", {400}),
    "length and chunks": (head(*AUTH, "Content-Length: 5", "Transfer-Encoding: chunked", first=POST)
                          + b"0\r\n\r\n", {400}),
    "header of 16 MB": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * (16 << 20), {431, 400, None}),
    "10,000 headers": (head(*[f"A{i}: b" for i in range(10_000)]), {431, None}),
    "address of 1 MB": (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n", {431, 414, 400, None}),
    "gzip": (head(*AUTH, "Content-Encoding: gzip", "Content-Length: 2", first=POST) + b"{}", {415}),
    "brotli": (head(*AUTH, "Content-Encoding: br", "Content-Length: 2", first=POST) + b"{}", {415}),
    "form": (head(AUTH[0], "Content-Type: application/x-www-form-urlencoded", "Content-Length: 2", first=POST) + b"{}",
             {415}),
    "deflate": (head(*AUTH, "Content-Encoding: deflate", "Content-Length: 2", first=POST) + b"{}", {415}),
    "plain text": (head(AUTH[0], "Content-Type: text/plain", "Content-Length: 2", first=POST) + b"{}", {415}),
    "no type": (head(AUTH[0], "Content-Length: 2", first=POST) + b"{}", {415}),
    "trace": (head(AUTH[0], first="TRACE /v1/completions HTTP/1.1"), {405}),
    "unknown method": (head(first="FOO / HTTP/1.1"), {400, 405}),
    "get of a post": (head(AUTH[0], first="GET /v1/completions HTTP/1.1"), {405}),
    "upgrade": (head("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"), {400}),
    "connect": (head(first="CONNECT a:1 HTTP/1.1"), {400, 404, 405, 401}),
    "bare lines": (b"GET /health/live HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n", {200, 400}),
    "no host": (b"GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
    "a million chunks": (head(*AUTH, "Transfer-Encoding: chunked", first=POST)
                         + b"1\r\nA\r\n" * 1_000_000, {413, None}),
    "body over chunks": (head(*AUTH, "Transfer-Encoding: chunked", first=POST)
                         + b"100000\r\n%b\r\n" % (b" " * (1 << 20)) * 9 + b"0\r\n\r\n", {413, None}),
    "expect with a bad key": (head("Expect: 100-continue", "Content-Length: 10", "Content-Type: application/json",
                                   first=POST), {401}),
    "headers that stop": (b"GET / HTTP/1.1\r\nHost: loc", {None}),
    "a body that stops": (head(*AUTH, "Content-Length: 1000", first=POST) + b"{", {408}),
    "nothing": (b"", {None}),
    "many ranges": (head("Range: bytes=" + ",".join(["0-0"] * 10_000), first="GET / HTTP/1.1"), {200, 431}),
    "one range": (head("Range: bytes=0-0", first="GET / HTTP/1.1"), {200}),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_good_request(served, canary, name):
    data, wanted = RAW[name]
    assert status(raw(served, data)) in wanted
    canary.check()


def test_pipelined_requests_are_answered_in_order(served):
    one = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reply = raw(served, one * 499 + one.replace(b"/live", b"/dead"), 2)
    assert reply.count(b"HTTP/1.1 200") == 499 and reply.count(b"HTTP/1.1 40") == 1
    assert reply.rindex(b"HTTP/1.1 40") > reply.rindex(b"HTTP/1.1 200")


def test_a_reader_that_stops_reading_is_dropped(served, canary):
    body = json.dumps({**ASK, "max_tokens": 500, "n": 128, "logprobs": 20, "stream": True}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", served.port))
        s.sendall(head(*AUTH, f"Content-Length: {len(body)}", first=POST) + body)
        served.wait_for(lambda: served.metric("num_requests_running") > 0)
        served.wait_for(lambda: served.metric("num_requests_running") + served.metric("num_requests_waiting") == 0, 30)
    canary.check()


def test_more_connections_than_allowed_are_told_so():
    with Served(*TINY, "--max-connections", "20") as s:
        canary = Canary(s)
        held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(30)]
        time.sleep(0.2)
        told = 0
        for h in held:
            h.settimeout(0.05)
            with suppress(TimeoutError):
                told += h.recv(100).startswith(b"HTTP/1.1 503")
            h.close()
        assert told == 10
        s.wait_ready()
        canary.check()
