"""Tests that need real connections: bodies without a length, odd request lines, HEAD, upgrades, HTTP/2."""

from __future__ import annotations

import contextlib
import json

import h2.connection
import h2.events
import h11
import httpx
import pytest
import trio

from tests.provisioner.api.served import served


@pytest.fixture
async def wire(service):
    async with served(service) as (url, _):
        yield Wire(service, url)


class Wire:
    def __init__(self, service, url):
        self.service, self.url = service, url
        self.port = int(url.rpartition(":")[2])

    async def say(self, data, *, method=b"GET"):
        """Send bytes; return the status, headers and body of the first response."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reader.send(h11.EndOfMessage())
        body, head = b"", None
        with trio.fail_after(30):
            async with stream:
                await stream.send_all(data)
                while True:
                    event = reader.next_event()
                    if event is h11.NEED_DATA:
                        reader.receive_data(await stream.receive_some(65536))
                    elif isinstance(event, h11.Response):
                        head = event
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                        return head.status_code, dict(head.headers), body

    def head(self, line, *headers, role="admin"):
        lines = [line, "Host: x", f"X-API-Token: {self.service.token[role]}", *headers, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    async def refused(self, status, data, method=b"GET"):
        code, headers, body = await self.say(data, method=method)
        assert code == status, body
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"x-request-id"]
        assert json.loads(body)["code"] == status
        return headers


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_chunked_body_over_64_kib(wire, path):
    head = wire.head(f"POST {path} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"1000\r\n" + 4096 * b" " + b"\r\n"
    await wire.refused(413, head + 17 * chunk + b"0\r\n\r\n")
    await wire.refused(400, head + 16 * chunk + b"0\r\n\r\n")


async def test_endless_body(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    await wire.refused(413, head + 17 * (b"1000\r\n" + 4096 * b" " + b"\r\n"))


async def test_declared_body_over_64_kib(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Type: application/json", "Content-Length: 65537")
    await wire.refused(413, head)


async def test_body_without_credential(wire):
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    headers = await wire.refused(401, head)
    assert b"Bearer" in headers[b"www-authenticate"]


@pytest.mark.parametrize("path", ["/health", "/readyz", "/metrics", "/api/v1/jobs", "/api/v1/volumes"])
async def test_head_matches_get(wire, path):
    status, headers, body = await wire.say(wire.head(f"HEAD {path} HTTP/1.1", "Connection: close"), method=b"HEAD")
    assert (status, body) == (200, b"")
    assert int(headers[b"content-length"]) > 0


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("//api/v1/jobs", 200),
        ("/api/v1//jobs", 404),
        ("/api/v1/./jobs", 404),
        ("/x/../api/v1/jobs", 404),
        ("/%61pi/v1/jobs", 200),
        ("/API/v1/jobs", 404),
        ("/api/v1/jobs/%2e%2e%2fjobs", 404),
        ("/api/v1/jobs/%ff", 404),
        ("/api/v1/jobs;x", 404),
        ("*", 404),
    ],
)
async def test_odd_targets(wire, target, status):
    code, headers, body = await wire.say(wire.head(f"GET {target} HTTP/1.1"))
    assert code == status, body
    assert headers[b"x-request-id"]
    assert headers[b"content-type"] == b"application/json"


@pytest.mark.parametrize(
    "target", ["//api/v1/jobs", "/%61pi/v1/jobs", "/api/v1/./jobs", "/api%2fv1/jobs", "http://x/api/v1/jobs"]
)
async def test_path_spellings_need_authentication(wire, target):
    code, _, body = await wire.say(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert code in {401, 404}, body


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "CONNECTED"])
async def test_wrong_methods(wire, method):
    headers = await wire.refused(405, wire.head(f"{method} /api/v1/jobs HTTP/1.1"))
    assert {word.strip() for word in headers[b"allow"].split(b",")} == {b"GET", b"HEAD", b"POST"}


async def test_two_content_lengths(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Length: 5", "Content-Length: 6")
    code, _, _ = await wire.say(head + b"hello")
    assert code == 400


async def test_body_is_not_the_next_request(wire):
    inner = wire.head("POST /api/v1/cache/prune HTTP/1.1")
    head = wire.head("GET /health HTTP/1.1", f"Content-Length: {len(inner)}")
    await wire.say(head + inner)
    text = wire.service.services.metrics.render().decode()
    assert "prune" not in text


async def test_websocket_upgrade_is_refused(wire):
    head = wire.head("GET /api/v1/jobs HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket",
                     "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    code, _, _ = await wire.say(head)
    assert code >= 400


async def test_endless_headers(wire):
    head = wire.head("GET /health HTTP/1.1", *[f"X-{n}: {1000 * 'a'}" for n in range(100)])
    code, _, _ = await wire.say(head.removesuffix(b"\r\n"))
    assert code in {400, 431}


async def test_responses_hide_the_server(wire):
    for path in ("/health", "/nothing"):
        _, headers, _ = await wire.say(wire.head(f"GET {path} HTTP/1.1"))
        assert b"server" not in headers
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"x-content-type-options"] == b"nosniff"


async def test_http_2_without_tls(wire):
    async with httpx.AsyncClient(base_url=wire.url, http1=False, http2=True, trust_env=False) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert (await client.get("/api/v1/jobs")).status_code == 401
        assert (await client.post("/api/v1/cache/prune", content=b"x")).status_code == 401
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/api/v1/jobs", 401), ("/health", 405), ("/nothing", 404)])
async def test_http_2_answer_before_the_body_ends(wire, path, status):
    """The connection stays usable although data arrives for an answered request."""

    async def pieces(count):
        for _ in range(count):
            yield 8192 * b" "

    async with httpx.AsyncClient(base_url=wire.url, http1=False, http2=True, trust_env=False) as client:
        for _ in range(3):
            assert (await client.post(path, content=pieces(32))).status_code == status
        assert (await client.get("/health")).status_code == 200
        headers = {"X-API-Token": wire.service.token["admin"], "Content-Type": "application/json"}
        too_much = await client.post("/api/v1/jobs", content=65537 * b" ", headers=headers)
        assert too_much.status_code == 413
        assert (await client.get("/health")).status_code == 200


async def test_http_2_late_data_is_no_activity(service):
    """Data for an answered request does not count as activity: the idle timer ends the connection."""
    async with served(service) as (url, listener):
        listener.config.keep_alive_timeout = 0.2
        client, stream = await _answered_early(url, service.token["admin"])
        async with stream:
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                while True:
                    client.send_data(1, b"late")
                    await stream.send_all(client.data_to_send())
                    await trio.sleep(0.01)


async def test_http_2_request_after_late_data(wire):
    client, stream = await _answered_early(wire.url, wire.service.token["admin"])
    client.send_data(1, b"too late")
    client.send_headers(3, [(":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "x")], True)
    async with stream:
        await stream.send_all(client.data_to_send())
        assert (b":status", b"200") in (await _answer(client, stream, 3)).headers


async def _answered_early(url, token):
    """Open a connection on which request 1 was answered with 413 before its body."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    head = [(":method", "POST"), (":path", "/api/v1/jobs"), (":scheme", "http"), (":authority", "x"),
            ("x-api-token", token), ("content-type", "application/json"), ("content-length", "70000")]  # fmt: skip
    client.send_headers(1, head)
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    await stream.send_all(client.data_to_send())
    assert (b":status", b"413") in (await _answer(client, stream, 1)).headers
    return client, stream


async def _answer(client, stream, stream_id):
    events = []
    with trio.fail_after(30):
        while not any(isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id for event in events):
            events += client.receive_data(await stream.receive_some(65536))
            await stream.send_all(client.data_to_send())
    return next(e for e in events if isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream_id)


@pytest.mark.parametrize(
    "line",
    ["POST /api/v1/jobs HTTP/1.1", "POST /health HTTP/1.1", "GET /api/v1/jobs HTTP/1.1", "GET /nothing HTTP/1.1"],
)
async def test_ambiguous_length_ends_connection(wire, line):
    """RFC 9112, 6.1: a proxy may have read another length, so the following bytes are not treated as a request."""
    head = wire.head(line, "Content-Type: application/json", "Content-Length: 5", "Transfer-Encoding: chunked")
    following = wire.head("POST /api/v1/cache/prune HTTP/1.1")
    got = await _everything(wire, head + b"0\r\n\r\n" + following)
    assert got.startswith(b"HTTP/1.1 400")
    assert got.count(b"HTTP/1.1") == 1
    assert b"connection: close" in got.lower()


async def test_chunked_body_in_http_1_0(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.0", "Connection: keep-alive", "Transfer-Encoding: chunked")
    assert (await _everything(wire, head + b"0\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def _everything(wire, data):
    got = b""
    async with await trio.open_tcp_stream("127.0.0.1", wire.port) as stream:
        await stream.send_all(data)
        with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
            while chunk := await stream.receive_some(65536):
                got += chunk
    return got
