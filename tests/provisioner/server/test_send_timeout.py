"""Tests of clients that do not read: they are disconnected and do not delay the shutdown."""

from __future__ import annotations

import h2.connection
import h2.events
import pytest
import trio

from provisioner.server.send_timeout import SendTimeoutStream
from tests.provisioner.api.served import served


@pytest.fixture
async def pair():
    near, far = trio.socket.socketpair()
    async with trio.SocketStream(near) as one, trio.SocketStream(far) as other:
        yield one, other


async def test_send_all_to_reader(pair):
    near, far = pair
    data = bytes(range(256)) * 8192
    got = bytearray()

    async def read():
        while len(got) < len(data):
            got.extend(await far.receive_some(10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await SendTimeoutStream(near).send_all(data)
    assert got == data


async def test_send_all_times_out_under_shield(pair):
    near, _ = pair
    with trio.CancelScope(shield=True), pytest.raises(trio.BrokenResourceError, match="did not read"):
        await SendTimeoutStream(near, timeout=0.05).send_all(b"x" * 64 * 1024 * 1024)
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")


async def test_send_all_cancelled(pair):
    near, _ = pair
    with trio.move_on_after(0.05) as scope:
        await SendTimeoutStream(near).send_all(b"x" * 64 * 1024 * 1024)
    assert scope.cancelled_caught


async def test_shutdown_with_stuck_client(service):
    async with served(service) as (url, listener):
        listener.config.graceful_timeout = 0.05
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        stuck = trio.Event()
        real = SendTimeoutStream.send_all

        async def noted(self, data):
            with trio.move_on_after(0.05) as scope:
                await real(self, data)
            if scope.cancelled_caught:
                stuck.set()
                await real(self, data)

        SendTimeoutStream.send_all = noted
        try:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 900)
            with trio.fail_after(60):
                await stuck.wait()
        finally:
            SendTimeoutStream.send_all = real
        began = trio.current_time()
    assert trio.current_time() - began < 25  # well below the send timeout
    await stream.aclose()


@pytest.mark.parametrize("head", ["Connection: close", "X: idle"])
async def test_connection_is_closed(service, head):
    """Because the client asked for it, or because the connection is idle."""
    async with served(service) as (url, listener):
        listener.config.keep_alive_timeout = 0.05
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(f"GET /health HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            got = b""
            with trio.fail_after(30):
                while chunk := await stream.receive_some(65536):
                    got += chunk
    assert got.startswith(b"HTTP/1.1 200")


async def test_idle_http_2_connection_is_closed(service):
    async with served(service) as (url, listener):
        listener.config.keep_alive_timeout = 0.05
        client = h2.connection.H2Connection()
        client.initiate_connection()
        head = [(":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "x")]
        client.send_headers(1, head, end_stream=True)
        events = []
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(client.data_to_send())
            with trio.fail_after(30):
                while chunk := await stream.receive_some(65536):
                    events += client.receive_data(chunk)
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)


async def test_disconnected_client_frees_its_place(service):
    """Clients one after the other, while the idle timer runs; each needs the only place."""
    async with served(service, max_connections_per_address=1) as (url, _):
        with trio.fail_after(60):
            for _ in range(5):
                got = b""
                while not got.startswith(b"HTTP/1.1 200"):
                    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
                        try:
                            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                            got = await stream.receive_some(65536)
                        except trio.BrokenResourceError:  # the earlier connection is still being closed
                            got = b""
