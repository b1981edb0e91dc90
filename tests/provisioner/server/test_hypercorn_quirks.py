"""Tests that show each bug of the pinned hypercorn, quart-trio and h11 that ``hypercorn_quirks`` works around.

If a test fails after an upgrade, upstream has fixed its bug: remove the workaround of that number, its entry in the
module's docstring, and the test. Streams are in memory, and the clock is a mock, so an hour passes at once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import ssl
from types import SimpleNamespace

import h2.connection
import h2.events
import h11
import pytest
import trio
import trio.testing
import trustme
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from quart_trio import QuartTrio

from provisioner.contracts.cancel_shield import ShieldExpiredError
from provisioner.server.hypercorn_quirks import (
    PIECE_TIMEOUT,
    HttpConnection,
    WholeResponses,
    has_ambiguous_length,
    send_in_time,
)

HOUR = 3600.0
# Seconds after which hypercorn should close an idle connection.
IDLE = 10.0


class Socket:
    """The methods of a socket that hypercorn calls."""

    family = None

    def getpeername(self):
        return ("192.0.2.1", 1)

    def getsockname(self):
        return ("192.0.2.2", 2)


class Plain(trio.abc.HalfCloseableStream):
    """An in-memory stream with a socket."""

    def __init__(self, stream):
        self._stream = stream
        self.socket = Socket()

    async def send_all(self, data):
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self):
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self):
        await self._stream.send_eof()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def aclose(self):
        await self._stream.aclose()


async def answer_at_once(scope, receive, send, sync_spawn=None, call_soon=None):
    """An app that answers without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def quart_app():
    """Return a quart-trio app as hypercorn calls it."""
    app = QuartTrio("test")

    @app.get("/")
    async def index():
        return "x"

    async def call(scope, receive, send, sync_spawn, call_soon):
        await app(scope, receive, send)

    return call


def pair():
    near, far = trio.testing.memory_stream_pair()
    return near, Plain(far)


def server(kind, app, stream):
    config = Config()
    config.keep_alive_timeout = IDLE
    config.accesslog = config.errorlog = None
    return kind(app, config, WorkerContext(None), LifespanState(ConnectionState({})), stream)


@contextlib.asynccontextmanager
async def serving(kind, app=answer_at_once):
    """Serve a connection; yield the client's end, and an object whose ``ended`` is when the server was done."""
    near, far = pair()
    state = SimpleNamespace(ended=None, errors=[])

    async def run():
        try:
            await server(kind, app, far)
        except Exception as error:
            state.errors.append(error)
        state.ended = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield near, state
        nursery.cancel_scope.cancel()
        await near.aclose()


def test_pinned_versions():
    """The module's docstring is about these versions. Check its list before changing them."""
    versions = {name: importlib.metadata.version(name) for name in ("hypercorn", "quart-trio", "h11")}
    assert {name: version.rpartition(".")[0] for name, version in versions.items()} == {
        "hypercorn": "0.18", "quart-trio": "0.12", "h11": "0.16"
    }  # fmt: skip


async def late_data(kind):
    """Send data for an answered request; return the errors of the connection."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "x")])
    async with serving(kind) as (near, state):
        await near.send_all(client.data_to_send())
        events = []
        while not any(isinstance(event, h2.events.StreamEnded) for event in events):
            events += client.receive_data(await near.receive_some())
        client.send_data(1, b"late")
        await near.send_all(client.data_to_send())
        await trio.testing.wait_all_tasks_blocked()
        return state.errors


async def test_1_data_for_answered_request():
    (error,) = await late_data(TCPServer)
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(KeyError) is not None
    assert await late_data(HttpConnection) == []


async def idle_without_tls(kind):
    """Open an HTTP/2 connection without TLS or request; return when the server closed it."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    async with serving(kind) as (near, state):
        await near.send_all(client.data_to_send())
        await trio.sleep(HOUR)
        return state.ended


async def test_2_idle_timer_of_http_2_without_tls(autojump_clock):
    assert await idle_without_tls(TCPServer) is None
    assert await idle_without_tls(HttpConnection) is not None


async def kept_after_disconnect(kind):
    """Return how long the server keeps the connection after the client has disconnected."""
    async with serving(kind) as (near, state):
        await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        left = trio.current_time()
        await near.aclose()
        await trio.sleep(HOUR)
        return state.ended - left


async def test_3_idle_timer_after_disconnect(autojump_clock):
    assert await kept_after_disconnect(TCPServer) == pytest.approx(IDLE)
    assert await kept_after_disconnect(HttpConnection) == 0


async def asked_to_close(app):
    """Ask for the connection to be closed; return when the server did, or None if it never did."""
    async with serving(HttpConnection, app) as (near, state):
        await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with trio.move_on_after(HOUR):
            while await near.receive_some():
                pass
        await trio.testing.wait_all_tasks_blocked()
        return state.ended


async def test_4_last_step_of_answer(autojump_clock):
    app = quart_app()

    async def inner(scope, receive, send):
        await app(scope, receive, send, None, None)

    assert await asked_to_close(app) is None
    assert await asked_to_close(WholeResponses(inner)) is not None


async def test_5_sending_is_shielded(autojump_clock):
    near, far = trio.testing.lockstep_stream_pair()
    connection = server(TCPServer, answer_at_once, Plain(far))
    done = trio.Event()

    async def send():
        with trio.move_on_after(1):
            await connection.protocol_send(RawData(b"x"))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(HOUR)
        assert not done.is_set()
        assert await near.receive_some() == b"x"


async def test_6_no_client_certificate_in_scope():
    ca = trustme.CA()
    server_context, client_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ca.issue_cert("x").configure_cert(server_context)
    ca.issue_cert("client").configure_cert(client_context)
    for context in (server_context, client_context):
        ca.configure_trust(context)
    server_context.verify_mode = ssl.CERT_REQUIRED
    scopes = []

    async def app(scope, receive, send, sync_spawn, call_soon):
        scopes.append(scope)
        await answer_at_once(scope, receive, send)

    near, far = pair()
    client = trio.SSLStream(near, client_context, server_hostname="x", https_compatible=True)
    stream = trio.SSLStream(far, server_context, server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server(HttpConnection, app, stream).run)
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await client.receive_some()
        nursery.cancel_scope.cancel()
    (scope,) = scopes
    assert scope["scheme"] == "https"
    assert "tls" not in scope["extensions"]


def test_7_h11_accepts_both_lengths():
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    assert isinstance(reader.next_event(), h11.EndOfMessage)
    assert has_ambiguous_length("1.1", {name.decode() for name, _ in request.headers})


@pytest.mark.parametrize(
    ("version", "headers", "ambiguous"),
    [
        ("1.1", {"content-length", "transfer-encoding"}, True),
        ("1.0", {"transfer-encoding"}, True),
        ("1.1", {"transfer-encoding"}, False),
        ("1.1", {"content-length"}, False),
        ("2", {"content-length"}, False),
    ],
)
def test_has_ambiguous_length(version, headers, ambiguous):
    assert has_ambiguous_length(version, headers) is ambiguous


async def test_last_step_times_out(autojump_clock):
    """Only the deadline of the shield can end it; the app learns that the response was not sent."""

    async def send(message):
        if message["type"] == "http.response.body":
            await trio.sleep_forever()

    with pytest.raises(ShieldExpiredError):
        await WholeResponses(answer_at_once)({}, None, send, None, None)
    assert trio.current_time() < HOUR


async def test_last_step_survives_cancel(autojump_clock):
    sent = []

    async def send(message):
        await trio.sleep(1)
        sent.append(message["type"])

    async def app(scope, receive, send):
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with trio.move_on_after(0.5):
        await WholeResponses(app)({}, None, send, None, None)
    assert sent == ["http.response.body"]


class Deaf(Plain):
    """A stream whose peer goes away while it is being sent something."""

    async def send_all(self, data):
        await trio.sleep(1)
        raise trio.BrokenResourceError


async def gone_with_requests_waiting(kind):
    """Send two requests at once and go away; return whether the connection ends within an hour."""
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    with trio.move_on_after(HOUR) as scope:
        await server(kind, quart_app(), Deaf(far))
    return not scope.cancelled_caught


async def test_peer_gone_with_requests_waiting(autojump_clock):
    """8: fails once hypercorn ends such a connection itself."""
    assert not await gone_with_requests_waiting(TCPServer)
    assert await gone_with_requests_waiting(HttpConnection)


async def without_window(kind, *, in_time=False):
    """Read nothing of a long answer over HTTP/2; return how many KiB the app could send, and how long it was served."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(
        1, [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")], end_stream=True
    )
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(client.data_to_send())
    sent = []

    async def app(scope, receive, send, sync_spawn, call_soon):
        if in_time:
            send = send_in_time(send, near.send_stream.close)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 1024, "more_body": True})
            sent.append(number)
            if in_time and trio.current_time() > IDLE:  # its client has gone
                return
        await trio.sleep_forever()

    with trio.move_on_after(HOUR):
        await server(kind, app, Plain(far))
    return len(sent), trio.current_time()


async def test_9_http2_client_without_window(autojump_clock):
    """9: fails once hypercorn holds back the app by itself."""
    assert await without_window(TCPServer) == (1000, HOUR)
    sent, _ = await without_window(HttpConnection)
    assert 64 <= sent <= 64 + 32 + 1  # the window, hypercorn's buffer and a piece


async def test_http2_client_without_window_is_closed(autojump_clock):
    _, ended = await without_window(HttpConnection, in_time=True)
    assert ended == PIECE_TIMEOUT
