"""The faults of the pinned hypercorn, quart-trio and h11 that ``hypercorn_quirks`` works around, one test each.

A test that fails here after an upgrade says that its fault is gone: remove the work-around of that number, its entry in
the module's docstring, and the test. Streams are in memory and the clock is a mock: an hour passes at once.
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

from provisioner.contracts.shield import ShieldExpiredError
from provisioner.server.hypercorn_quirks import HttpConnection, WholeResponses, has_ambiguous_length

HOUR = 3600.0
# Seconds until hypercorn is to close an idle connection.
IDLE = 10.0


class Socket:
    """What hypercorn asks of a socket."""

    family = None

    def getpeername(self):
        return ("192.0.2.1", 1)

    def getsockname(self):
        return ("192.0.2.2", 2)


class Plain(trio.abc.HalfCloseableStream):
    """A stream in memory with a socket."""

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
    """An app that answers without a look at the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def quart_app():
    """An app of quart-trio, as hypercorn calls it."""
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
    """The client's end of a connection, and an object whose ``ended`` says when the server had done with it."""
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


def test_the_pinned_versions():
    """The numbers in the module are these; read its list again before changing them."""
    versions = {name: importlib.metadata.version(name) for name in ("hypercorn", "quart-trio", "h11")}
    assert {name: version.rpartition(".")[0] for name, version in versions.items()} == {
        "hypercorn": "0.18", "quart-trio": "0.12", "h11": "0.16"
    }  # fmt: skip


async def late_data(kind):
    """Data for an answered request: the errors of the connection."""
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


async def test_1_data_for_an_answered_request_is_a_key_error():
    (error,) = await late_data(TCPServer)
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(KeyError) is not None
    assert await late_data(HttpConnection) == []


async def idle_without_tls(kind):
    """HTTP/2 without TLS, and no request: when the server closed it."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    async with serving(kind) as (near, state):
        await near.send_all(client.data_to_send())
        await trio.sleep(HOUR)
        return state.ended


async def test_2_no_idle_timer_for_http_2_without_tls(autojump_clock):
    assert await idle_without_tls(TCPServer) is None
    assert await idle_without_tls(HttpConnection) is not None


async def gone(kind):
    """How long the server keeps the connection of a client that has gone."""
    async with serving(kind) as (near, state):
        await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        left = trio.current_time()
        await near.aclose()
        await trio.sleep(HOUR)
        return state.ended - left


async def test_3_the_idle_timer_outlives_the_client(autojump_clock):
    assert await gone(TCPServer) == pytest.approx(IDLE)
    assert await gone(HttpConnection) == 0


async def asked_to_close(app):
    """When the server closed a connection that the client asked to be closed, without an idle timer's help."""
    async with serving(HttpConnection, app) as (near, state):
        await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with trio.move_on_after(HOUR):
            while await near.receive_some():
                pass
        await trio.testing.wait_all_tasks_blocked()
        return state.ended


async def test_4_the_last_step_of_an_answer_is_cancelled(autojump_clock):
    app = quart_app()

    async def inner(scope, receive, send):
        await app(scope, receive, send, None, None)

    assert await asked_to_close(app) is None
    assert await asked_to_close(WholeResponses(inner)) is not None


async def test_5_sending_has_no_deadline_and_hears_no_cancel(autojump_clock):
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


async def test_6_the_app_learns_nothing_of_the_client_certificate():
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


def test_7_h11_takes_two_kinds_of_length():
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
def test_ambiguous_lengths(version, headers, ambiguous):
    assert has_ambiguous_length(version, headers) is ambiguous


async def test_a_last_step_that_takes_too_long_is_an_error(autojump_clock):
    """It was shielded, so nothing else would have ended it; the app learns that the answer did not leave."""

    async def send(message):
        if message["type"] == "http.response.body":
            await trio.sleep_forever()

    with pytest.raises(ShieldExpiredError):
        await WholeResponses(answer_at_once)({}, None, send, None, None)
    assert trio.current_time() < HOUR


async def test_a_cancel_does_not_cut_the_last_step(autojump_clock):
    sent = []

    async def send(message):
        await trio.sleep(1)
        sent.append(message["type"])

    async def app(scope, receive, send):
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with trio.move_on_after(0.5):
        await WholeResponses(app)({}, None, send, None, None)
    assert sent == ["http.response.body"]
