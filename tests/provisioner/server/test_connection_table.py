"""Tests which connections are closed when the table is full: the rule alone, and over real connections."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing

from provisioner.auth.audit_events import LOCAL
from provisioner.server.connection_table import ConnectionTable
from tests.provisioner.api.served import served
from tests.provisioner.tls.test_peer_certificate import tls_harness

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Socket:
    closed = False

    def close(self):
        self.closed = True


class Stream:
    def __init__(self, last_received):
        self.socket, self.last_received = Socket(), last_received


class Clients:
    """A table and its connections; the clock counts them."""

    def __init__(self, most, per_address):
        self.table = ConnectionTable(most, per_address)
        self.refused = 0
        self.table.on_refused = self.note
        self.clock = 0

    def note(self):
        self.refused += 1

    def connect(self, group, *, authenticated=False, requests=0):
        self.clock += 1
        made = self.table.admit(Stream(self.clock), group)
        if made is not None:
            made.authenticated, made.requests = authenticated, requests
        return made


def test_admit_closes_silent_of_same_address():
    clients = Clients(256, 64)
    silent = [clients.connect("a") for _ in range(80)]
    assert [one.closed for one in silent] == [True] * 16 + [False] * 64
    assert clients.connect("a") is not None
    assert silent[16].closed
    assert len(clients.table) == 64
    assert clients.refused == 17


def test_admit_keeps_authenticated():
    clients = Clients(256, 64)
    operator = clients.connect("a", authenticated=True)
    for _ in range(500):
        clients.connect("a")
    assert not operator.closed


def test_admit_refuses_full_address():
    clients = Clients(256, 4)
    kept = [clients.connect("a", authenticated=True) for _ in range(4)]
    assert clients.connect("a") is None
    assert clients.connect("b") is not None
    assert not any(one.closed for one in kept)


def test_admit_closes_idle_of_address_first():
    clients = Clients(256, 3)
    busy, quiet, idle = clients.connect("a", requests=1), clients.connect("a"), clients.connect("a")
    quiet.stream.last_received = 100
    clients.connect("a")
    assert [one.closed for one in (busy, quiet, idle)] == [False, False, True]
    clients.connect("a", requests=1)
    clients.connect("a")
    assert quiet.closed
    assert not busy.closed


def test_admit_balances_addresses():
    clients = Clients(256, 64)
    greedy = [clients.connect(name) for name in "abcd" for _ in range(64)]
    assert len(clients.table) == 256
    others = [clients.connect(f"other {number}") for number in range(64)]
    assert len(clients.table) == 256
    assert not any(one.closed for one in others)
    assert sum(one.closed for one in greedy) == 64
    left = [sum(one.group == name and not one.closed for one in greedy) for name in "abcd"]
    assert left == [48] * 4  # each lost the same number


def test_admit_closes_idle_of_large_address():
    clients = Clients(4, 4)
    large = [clients.connect("a", authenticated=True, requests=number % 2) for number in range(4)]
    assert clients.connect("b") is not None
    assert [one.closed for one in large] == [True, False, False, False]
    assert clients.connect("b") is not None  # replaces the earlier connection of b, which is not authenticated
    assert sum(one.closed for one in large) == 1


def test_unix_socket_has_no_address_limit():
    clients = Clients(8, 2)
    assert all(clients.connect(LOCAL) for _ in range(8))
    assert clients.refused == 0


async def test_wait_for_room_when_full():
    clients = Clients(2, 4)
    busy = [clients.connect("a", authenticated=True, requests=1) for _ in range(2)]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.table.wait_for_room, "a")
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            clients.table.release(busy[0])


async def answer(stream):
    """Receive a whole response, whose body is JSON."""
    got = b""
    with trio.fail_after(30):
        while not got.endswith(b"}"):
            chunk = await stream.receive_some(65536)
            assert chunk, got
            got += chunk
    return got


@contextlib.asynccontextmanager
async def silent_clients(url, count):
    async with contextlib.AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])
        yield [await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(count)]


async def test_operator_among_silent_clients(service):
    """An operator behind the same address is served, on an open connection and on new ones."""
    async with served(service) as (url, listener), silent_clients(url, 80):
        token = f"X-API-Token: {service.token['operator']}"
        asked = f"GET /api/v1/jobs HTTP/1.1\r\nHost: x\r\n{token}\r\n\r\n".encode()
        port = int(url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as kept:
            for _ in range(5):
                await kept.send_all(asked)
                assert b" 200 " in await answer(kept)
                async with silent_clients(url, 80), await trio.open_tcp_stream("127.0.0.1", port) as fresh:
                    await fresh.send_all(asked)
                    assert b" 200 " in await answer(fresh)
        assert len(listener.connections) <= 64


async def test_fifth_address_is_served(service):
    async with (
        served(service, max_connections=16, max_connections_per_address=4) as (url, listener),
        contextlib.AsyncExitStack() as stack,
    ):
        port = int(url.rpartition(":")[2])
        for number in (2, 3, 4, 5) * 4:
            await stack.enter_async_context(await open_from(f"127.0.0.{number}", port))
        for _ in range(4):
            fifth = await stack.enter_async_context(await open_from("127.0.0.6", port))
            await fifth.send_all(HEALTH)
            assert b" 200 " in await answer(fifth)
        assert len(listener.connections) <= 16


async def open_from(address, port):
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


@pytest.mark.parametrize("http2", [False, True])
async def test_connection_with_certificate_stays(tmp_path, http2):
    async with tls_harness(tmp_path) as tls:
        certificate = tls.ca.issue_cert("viewer.example")
        async with tls.client(certificate, http2=http2) as client:
            assert (await client.get("/health")).status_code == 200
            (kept,) = tls.listener.connections._open
            assert kept.authenticated
            async with silent_clients(tls.url, 80):
                assert (await client.get("/api/v1/jobs")).status_code == 200
            assert kept in tls.listener.connections._open


async def test_invalid_token_ends_authentication(service):
    good, wrong = service.token["viewer"], "lvp_wrong"
    async with (
        served(service) as (url, listener),
        await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream,
    ):
        for token, status in ((good, b" 200 "), (wrong, b" 401 "), (good, b" 200 ")):
            await stream.send_all(f"GET /api/v1/jobs HTTP/1.1\r\nHost: x\r\nX-API-Token: {token}\r\n\r\n".encode())
            assert status in await answer(stream)
            (connection,) = listener.connections._open
            assert connection.authenticated is (token == good)


async def test_connection_waits_when_all_are_busy(service):
    """All connections are authenticated and have a request in progress."""
    head = ["POST /api/v1/jobs HTTP/1.1", "Host: x", f"X-API-Token: {service.token['admin']}",
            "Content-Type: application/json", "Content-Length: 2", "Connection: close", "", ""]  # fmt: skip
    async with served(service, max_connections=2) as (url, listener), silent_clients(url, 2) as busy:
        for stream in busy:
            await stream.send_all("\r\n".join(head).encode())
        with trio.fail_after(30):
            while sum(one.authenticated for one in listener.connections._open) < 2:  # noqa: ASYNC110 - real traffic
                await trio.sleep(0.001)
        async with silent_clients(url, 1) as (third,), trio.open_nursery() as nursery:
            await third.send_all(HEALTH)
            got = []

            async def ask():
                got.append(await answer(third))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not got
            await busy[0].send_all(b"{}")
            assert b" 400 " in await answer(busy[0])
        assert b" 200 " in got[0]
