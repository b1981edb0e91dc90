"""Requests that are cancelled at any point leave no connection behind, and never exhaust the pool."""

import pytest
import trio

from provisioner.contracts.http import HttpOptions, HttpTransport
from tests.servers.images import image_server


@pytest.fixture
def url(tmp_path):
    (tmp_path / "disk.raw").write_bytes(b"x" * 1000)
    with image_server(tmp_path) as server:
        yield server.of("disk.raw")


async def cancelled_after(transport, url, steps):
    """Ask for the image, and cancel that once other tasks have run so many times."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.stat, url)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def connections(transport):
    return [one for pool in transport._transport._pools.values() for one in pool.connections if not one.is_closed()]


async def test_cancelled_requests_leave_no_connection(url):
    transport = HttpTransport(HttpOptions(connections=2), lambda _: True)
    await transport.stat(url)
    for steps in [*range(60)] * 2:
        await transport._transport.aclose()  # so that each request makes a connection
        await cancelled_after(transport, url, steps)
        assert all(one.is_idle() for one in connections(transport)), f"after {steps} steps"
    with trio.fail_after(60):
        assert (await transport.stat(url)).size == 1000
    await transport.aclose()


async def test_other_requests_go_on(url):
    """While a request is in progress, nothing is closed; its end closes what cancelled ones left."""
    transport = HttpTransport(HttpOptions(connections=8), lambda _: True)
    async with transport.open(url) as stream:
        for steps in range(60):
            await cancelled_after(transport, url, steps)
        with trio.fail_after(60):
            assert (await transport.stat(url)).size == 1000
        assert b"".join([piece async for piece in stream]) == b"x" * 1000
    assert all(one.is_idle() for one in connections(transport))
    await transport.aclose()
