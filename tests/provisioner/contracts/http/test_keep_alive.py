"""Connections are used again after short responses, and for nothing else."""

from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from provisioner.contracts import HttpOptions, HttpTransport
from provisioner.contracts.errors import RemoteNotFoundError, RemoteUnavailableError, SourceError
from provisioner.contracts.http import keep_alive
from tests.servers.raw import response

IMAGE = bytes(range(256)) * 4096


class Server:
    """Answers every request of a connection by ``answers``, which map a path to the bytes to send.

    ``served`` has the paths of each connection; ``ended`` is set when a connection has ended. After a path of
    ``closes_after`` it closes without a header that says so; a request for one of ``drops`` is not answered if it is
    not the first of its connection.
    """

    def __init__(self, answers, closes_after=(), drops=()):
        self.answers, self.closes_after, self.drops = answers, closes_after, drops
        self.served = []
        self.ended = trio.Event()

    async def attend(self, stream):
        paths = []
        self.served.append(paths)
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(4096)
                    if not more:
                        return
                    data += bytes(more)
                head, _, data = data.partition(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                if path in self.drops and paths:
                    return
                paths.append(path)
                await stream.send_all(self.answers[path])
                if path in self.closes_after:
                    return
        except trio.BrokenResourceError:
            pass
        finally:
            self.ended.set()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def serving(server):
    """Yield a transport and the server's url."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.attend, 0, host="127.0.0.1"))
        transport = HttpTransport(HttpOptions(stat_with_get=True), lambda _url: True)
        try:
            yield transport, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        finally:
            await transport.aclose()
            nursery.cancel_scope.cancel()


def sized(status, body, extra=""):
    return response(f"{status}\nContent-Length: {len(body)}{extra}", body)


async def read(transport, url):
    async with transport.open(url) as stream:
        return b"".join([chunk async for chunk in stream])


CHUNKED = response("200 OK\nTransfer-Encoding: chunked", b"4\r\ntext\r\n0\r\n\r\n")
BYTE = sized("206 Partial", b"x", "\nContent-Range: bytes 0-0/5")
ANSWERS = {
    "/image": BYTE,
    "/none": sized("404 Not Found", b"not here"),
    "/text": sized("200 OK", b"text"),
    "/chunked": CHUNKED,
    "/moved": sized("302 Found", b"elsewhere", "\nLocation: /image"),
    "/empty": sized("416 No", b"no", "\nContent-Range: bytes */0"),
    "/page": sized("404 Not Found", b"-" * (keep_alive.MAX_REST + 1)),
    "/whole": sized("200 OK", IMAGE),
}


async def test_short_answers_share_a_connection():
    server = Server(ANSWERS)
    async with serving(server) as (transport, url):
        assert (await transport.stat(f"{url}/image")).size == 5
        with pytest.raises(RemoteNotFoundError):
            await transport.stat(f"{url}/none")
        assert await read(transport, f"{url}/text") == b"text"
        assert await read(transport, f"{url}/chunked") == b"text"
        assert (await transport.stat(f"{url}/moved")).size == 5
        assert (await transport.stat(f"{url}/empty")).size == 0
        assert await read(transport, f"{url}/text") == b"text"
    assert server.served == [["/image", "/none", "/text", "/chunked", "/moved", "/image", "/empty", "/text"]]


@pytest.mark.parametrize("path", ["/page", "/whole"])
async def test_long_answers_are_not_read_to_the_end(path):
    """A new connection is cheaper."""
    server = Server(ANSWERS)
    async with serving(server) as (transport, url):
        with suppress(SourceError):
            await transport.stat(f"{url}{path}")
        assert await read(transport, f"{url}/text") == b"text"
    assert server.served == [[path], ["/text"]]


async def test_partly_read_body_ends_the_connection():
    server = Server(ANSWERS)
    async with serving(server) as (transport, url):
        async with transport.open(f"{url}/whole", 0, 10) as stream:
            assert b"".join([chunk async for chunk in stream]) == IMAGE[:10]
        assert await read(transport, f"{url}/text") == b"text"
    assert server.served == [["/whole"], ["/text"]]


async def test_downloaded_by_a_thread_ends_the_connection(tmp_path):
    """The thread takes the bytes from the socket, so the parser of the connection does not know where they end."""
    server = Server(ANSWERS)
    async with serving(server) as (transport, url):
        with (tmp_path / "out").open("w+b") as file:
            async with transport.open(f"{url}/whole") as stream:
                await stream.save(file.fileno(), lambda _end: None)
        assert (tmp_path / "out").read_bytes() == IMAGE
        assert await read(transport, f"{url}/text") == b"text"
    assert server.served == [["/whole"], ["/text"]]


async def test_closed_by_the_server_meanwhile():
    server = Server(ANSWERS, closes_after=["/image"])
    async with serving(server) as (transport, url):
        for _ in range(3):
            assert (await transport.stat(f"{url}/image")).size == 5
    assert server.served == [["/image"]] * 3


async def test_closed_by_the_server_at_the_next_request():
    """The request is sent again at once: the server has not answered it."""
    server = Server(ANSWERS, drops=["/text"])
    async with serving(server) as (transport, url):
        assert (await transport.stat(f"{url}/image")).size == 5
        assert await read(transport, f"{url}/text") == b"text"
    assert server.served == [["/image"], ["/text"]]


async def test_new_connection_without_an_answer_fails_once():
    server = Server({"/image": b""}, closes_after=["/image"])
    async with serving(server) as (transport, url):
        with pytest.raises(RemoteUnavailableError):
            await transport.stat(f"{url}/image")
    assert server.served == [["/image"]]


async def test_idle_connections_are_closed(monkeypatch):
    monkeypatch.setattr(keep_alive, "KEEP_IDLE", 0.05)
    server = Server(ANSWERS)
    async with serving(server) as (transport, url):
        for _ in range(2):
            server.ended = trio.Event()
            assert (await transport.stat(f"{url}/image")).size == 5
            with trio.fail_after(30):
                await server.ended.wait()
    assert server.served == [["/image"], ["/image"]]
