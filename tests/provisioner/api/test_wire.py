"""What only real connections can show: bodies without a length, odd request lines, HEAD, upgrades, HTTP/2."""

from __future__ import annotations

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
        """Send bytes; the status, headers and body of the first answer."""
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
async def test_a_chunked_body_over_64_kib(wire, path):
    head = wire.head(f"POST {path} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"1000\r\n" + 4096 * b" " + b"\r\n"
    await wire.refused(413, head + 17 * chunk + b"0\r\n\r\n")
    await wire.refused(400, head + 16 * chunk + b"0\r\n\r\n")


async def test_an_endless_body_is_answered_before_its_end(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    await wire.refused(413, head + 17 * (b"1000\r\n" + 4096 * b" " + b"\r\n"))


async def test_a_body_declared_over_64_kib_is_answered_before_it_comes(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Type: application/json", "Content-Length: 65537")
    await wire.refused(413, head)


async def test_nobody_unknown_is_let_talk(wire):
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    headers = await wire.refused(401, head)
    assert b"Bearer" in headers[b"www-authenticate"]


@pytest.mark.parametrize("path", ["/health", "/readyz", "/metrics", "/api/v1/jobs", "/api/v1/volumes"])
async def test_head_answers_like_get_without_a_body(wire, path):
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
async def test_no_spelling_of_a_path_gets_around_authentication(wire, target):
    code, _, body = await wire.say(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert code in {401, 404}, body


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "CONNECTED"])
async def test_wrong_methods(wire, method):
    headers = await wire.refused(405, wire.head(f"{method} /api/v1/jobs HTTP/1.1"))
    assert {word.strip() for word in headers[b"allow"].split(b",")} == {b"GET", b"HEAD", b"POST"}


async def test_two_lengths_are_no_request(wire):
    head = wire.head("POST /api/v1/jobs HTTP/1.1", "Content-Length: 5", "Content-Length: 6")
    code, _, _ = await wire.say(head + b"hello")
    assert code == 400


async def test_a_body_is_not_read_as_the_next_request(wire):
    inner = wire.head("POST /api/v1/cache/prune HTTP/1.1")
    head = wire.head("GET /health HTTP/1.1", f"Content-Length: {len(inner)}")
    await wire.say(head + inner)
    text = wire.service.services.metrics.render().decode()
    assert "prune" not in text


async def test_an_upgrade_to_websocket_is_refused(wire):
    head = wire.head("GET /api/v1/jobs HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket",
                     "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    code, _, _ = await wire.say(head)
    assert code >= 400


async def test_headers_without_end_are_no_request(wire):
    head = wire.head("GET /health HTTP/1.1", *[f"X-{n}: {1000 * 'a'}" for n in range(100)])
    code, _, _ = await wire.say(head.removesuffix(b"\r\n"))
    assert code in {400, 431}


async def test_no_answer_tells_what_serves_it(wire):
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
async def test_http_2_bodies_of_the_unknown_are_waited_for_and_not_kept(wire, path, status):
    """Their connection goes on; a body over the limit is refused whoever sends it."""

    async def pieces(count):
        for _ in range(count):
            yield 8192 * b" "

    async with httpx.AsyncClient(base_url=wire.url, http1=False, http2=True, trust_env=False) as client:
        for _ in range(3):
            assert (await client.post(path, content=pieces(8))).status_code == status
        assert (await client.get("/health")).status_code == 200
    async with httpx.AsyncClient(base_url=wire.url, http1=False, http2=True, trust_env=False) as client:
        assert (await client.post(path, content=65537 * b" ")).status_code == 413


async def test_http_2_data_after_the_answer_ends_no_other_connection(wire):
    async with httpx.AsyncClient(base_url=wire.url, trust_env=False) as other:
        assert (await other.get("/health")).status_code == 200
        for _ in range(3):
            await _send_data_after_the_answer(wire)
        assert (await other.get("/health")).status_code == 200


async def _send_data_after_the_answer(wire):
    client = h2.connection.H2Connection()
    client.initiate_connection()
    head = [(":method", "POST"), (":path", "/api/v1/jobs"), (":scheme", "http"), (":authority", "x"),
            ("x-api-token", wire.service.token["admin"]), ("content-type", "application/json"),
            ("content-length", "70000")]  # fmt: skip
    client.send_headers(1, head)
    async with await trio.open_tcp_stream("127.0.0.1", wire.port) as stream:
        await stream.send_all(client.data_to_send())
        with trio.fail_after(30):
            events = []
            while not any(isinstance(event, h2.events.StreamEnded) for event in events):
                events += client.receive_data(await stream.receive_some(65536))
        (answer,) = [event for event in events if isinstance(event, h2.events.ResponseReceived)]
        assert (b":status", b"413") in answer.headers
        client.send_data(1, b"too late")
        await stream.send_all(client.data_to_send())
        with trio.fail_after(30):  # the server ends the connection, and only that
            while await stream.receive_some(65536):
                pass


async def test_more_connections_than_allowed_wait_for_their_turn(service):
    async with served(service, max_connections=2) as (url, _):
        port = int(url.rpartition(":")[2])
        open_now = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        asked = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for stream in open_now:
            await stream.send_all(asked)
            assert b"200" in await stream.receive_some(4096)
        third = await trio.open_tcp_stream("127.0.0.1", port)
        await third.send_all(asked)
        await open_now[0].aclose()
        with trio.fail_after(30):
            assert b"200" in await third.receive_some(4096)
        for stream in (open_now[1], third):
            await stream.aclose()
