"""Servers that send just enough to look alive: each step of a transfer times out and can be cancelled."""

import os
import socket
import ssl
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trustme

from provisioner.contracts import HttpOptions, HttpTransport, ImageUrl, RemoteImage
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.download import checksum_lookup, read_ahead
from provisioner.download.fetch import fetch
from provisioner.download.growing_file import GrowingFile
from tests.servers.raw import holds, raw_server, response, says, until_client_hangs_up

pytestmark = pytest.mark.slow  # real seconds

# Seconds; far above the duration of a step, far below the timeout of a test.
SHORT = 0.3
DRIP = 0.02
IMAGE = bytes(range(251)) * 4000


class Web:
    """A source for download and checksums that consists of a transport. Each test's are closed at its end."""

    made: ClassVar = []

    def __init__(self, **options):
        self.made.append(self)
        limits = {"stall_timeout": SHORT, "connect_timeout": 60, **options}
        self.transport = HttpTransport(HttpOptions(**limits), lambda _url: True)
        self.stat, self.open, self.aclose = self.transport.stat, self.transport.open, self.transport.aclose

    def owns(self, _url):
        return True

    def checksum_files(self):
        return ()


@pytest.fixture(autouse=True)
async def webs():
    yield
    while Web.made:
        await Web.made.pop().aclose()


async def save(web, url, path, **span):
    with path.open("w+b") as file:
        async with web.open(url, **span) as stream:
            return await stream.save(file.fileno(), lambda _end: None)


async def read(web, url, _path=None):
    async with web.open(url) as stream:
        return b"".join([chunk async for chunk in stream])


def drips(begin, again=b"x"):
    """Send ``begin``, then ``again`` 50 times per second, far below every required rate."""

    async def answer(request, stream):
        await stream.send_all(begin)
        while request.method != "HEAD":
            await stream.send_all(again)
            await trio.sleep(DRIP)

    return answer


def drips_headers(name=b"a"):
    async def answer(_request, stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nX-Never-Ends: ")
        while True:
            await stream.send_all(name)
            await trio.sleep(DRIP)

    return answer


def in_use():
    """Return the number of open descriptors and of threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


async def wait_until_closed(before):
    """Wait until at most ``before`` descriptors are open: the server closes its ends a moment later."""
    with trio.fail_after(60):
        while in_use()[0] > before:  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(0.01)


# --- before the headers are complete ------------------------------------------------------------------


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"], ids=["in-a-header", "early-hints"])
async def test_endless_headers(interim, tmp_path):
    answer = drips(interim, interim) if interim else drips_headers()
    async with raw_server(answer) as server:
        for way in (read, save):
            with pytest.raises(
                RemoteUnavailableError, match=r"stalled: the response was not complete after 2\.3 s"
            ) as caught:
                await way(Web(connect_timeout=2), server.url, tmp_path / "out")
            assert caught.value.temporary


async def test_endless_handshake(tmp_path):
    async def shake(stream):
        with trio.move_on_after(30):
            try:
                await stream.send_all(b"\x16\x03\x03\x40\x00")
                while True:
                    await stream.send_all(b"\x02")
                    await trio.sleep(DRIP)
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, shake, 0)
        port = listeners[0].socket.getsockname()[1]
        # The limit of the whole response also counts the loading of certificates, and must not end first.
        with pytest.raises(RemoteUnavailableError, match="connecting timed out"):
            await Web(connect_timeout=SHORT, stall_timeout=60).stat(f"https://127.0.0.1:{port}/disk")
        nursery.cancel_scope.cancel()


async def test_slow_redirects_are_limited():
    """The timeout applies to each response, and there are six at most."""

    async def answer(request, stream):
        await stream.send_all(b"HTTP/1.1 302 On\r\nContent-Length: 0\r\n")
        for byte in b"Location: /again\r\n\r\n":
            await stream.send_all(bytes([byte]))

    async with raw_server(answer) as server:
        with pytest.raises(Exception, match="redirects more than 5 times"):
            await Web().stat(server.url)


async def test_trickling_error_body():
    def explain(_status, _headers, _body, _where):
        raise AssertionError("the body is not complete")

    begin = response("403 No\nContent-Length: 1000")
    options = HttpOptions(stall_timeout=SHORT, connect_timeout=2)
    async with raw_server(drips(begin)) as server:
        with pytest.raises(RemoteUnavailableError, match="stalled"):
            await read(HttpTransport(options, lambda _url: True, None, explain), server.url)


@pytest.mark.parametrize("what", ["headers", "silence", "handshake", "name"])
async def test_cancelled_requests_leave_no_resources(what, tmp_path, monkeypatch):
    """After more cancelled requests than the source has connections, the next download starts at once."""
    never = threading.Event()
    real = socket.getaddrinfo

    def look_up(host, *arguments, **more):
        if host == "hangs.test" and not more.get("flags"):
            never.wait(30)
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    web = Web(stall_timeout=60, connect_timeout=60, connections=2)
    answer = drips_headers() if what == "headers" else lambda _request, stream: until_client_hangs_up(stream)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with raw_server(answer) as bad, raw_server(holds(IMAGE)) as good:
            url = {
                "headers": bad.url,
                "silence": bad.url,
                "handshake": f"https://127.0.0.1:{mute.getsockname()[1]}",
                "name": f"http://hangs.test:{good.port}",
            }[what]
            await save(web, good.url, tmp_path / "out")  # create everything that is created once
            before = in_use()
            with trio.fail_after(60):  # ends a hanging test; not a measure of speed
                for _ in range(8 if what != "name" else 1):
                    async with trio.open_nursery() as nursery:
                        for _ in range(3):
                            nursery.start_soon(read, web, url)
                        await trio.sleep(2 * DRIP)
                        nursery.cancel_scope.cancel()
                assert await save(web, good.url, tmp_path / "out") == len(IMAGE)
                assert (tmp_path / "out").read_bytes() == IMAGE
            # A hanging look-up ends with the timeouts of the system's resolver.
            assert in_use()[1] <= before[1] + (3 if what == "name" else 1)
            never.set()
            await wait_until_closed(before[0])
    await web.aclose()


# --- bodies -------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


BODIES = {
    "length": (response("200 OK\nContent-Length: 1000000", b"begin"), b"x"),
    "chunks": (response("200 OK\nTransfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "to-the-end": (response("200 OK\nConnection: close", b"begin"), b"x"),
    "chunk-size-without-end": (response("200 OK\nTransfer-Encoding: chunked"), b"0"),
    "chunk-extension-without-end": (response("200 OK\nTransfer-Encoding: chunked", b"5;x="), b"x"),
}


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", [save, read])
@pytest.mark.parametrize("kind", BODIES)
async def test_trickling_body(kind, way, encrypted, tls, tmp_path):
    async with raw_server(drips(*BODIES[kind]), tls if encrypted else None) as server:
        web = Web(ca_file=str(tmp_path / "ca.pem"))
        with trio.fail_after(20), pytest.raises(RemoteUnavailableError, match="stalled") as caught:
            await way(web, server.url, tmp_path / "out")
        assert caught.value.temporary


@pytest.mark.parametrize("way", [save, read])
async def test_trickling_body_without_min_rate(way, tmp_path):
    """Without a minimum rate, a trickling body is read to its end."""

    async def answer(_request, stream):
        await stream.send_all(response("200 OK\nContent-Length: 40"))
        for _ in range(40):
            await stream.send_all(b"x")
            await trio.sleep(DRIP)

    async with raw_server(answer) as server:
        got = await way(Web(min_rate=0, stall_timeout=60), server.url, tmp_path / "out")
        assert got in {40, b"x" * 40}


async def test_rate_limit_below_min_rate(tmp_path):
    """Our own rate limit may be below the minimum rate of the server."""
    async with raw_server(holds(b"x" * 60_000)) as server:
        assert await save(Web(rate_limit=50_000, min_rate=1_000_000), server.url, tmp_path / "out") == 60_000


# --- downloads ----------------------------------------------------------------------------------------


async def test_trickling_download_uses_up_retries(tmp_path):
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    begin = response(
        '206 Partial\nContent-Range: bytes 0-999999/1000000\nContent-Length: 1000000\nETag: "v1"', b"begin"
    )
    web = Web()
    async with raw_server(drips(begin)) as server:
        growing_file = GrowingFile(fd, 1 << 30)
        image = RemoteImage(server.url, 1_000_000, '"v1"', accepts_ranges=False)
        with trio.fail_after(30), pytest.raises(RemoteUnavailableError, match="stalled"):
            await fetch(web, image, growing_file, 3, lambda _size: None)
        assert len(server.requests) == 3
        assert 5 <= growing_file.available < 1000
    os.close(fd)


async def test_trickling_checksum_file(monkeypatch):
    monkeypatch.setattr(checksum_lookup, "MAX_SECONDS", SHORT)
    async with raw_server(drips(response("200 OK\nContent-Length: 1000000"))) as server:
        url = ImageUrl.parse(f"{server.url}/disk?signature=x")
        with pytest.raises(RemoteUnavailableError, match=r"disk\.sha256, .*: not received within 0.3 s"):
            await checksum_lookup.discover(Web(min_rate=0, stall_timeout=60), url)


async def test_trickling_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "LONGEST", SHORT)
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    start = 1 << 30
    head = f'206 Partial\nContent-Range: bytes {start}-{start + 999}/{2 * start}\nContent-Length: 1000\nETag: "v1"'
    async with raw_server(drips(response(head))) as server:
        image = RemoteImage(server.url, 2 * start, '"v1"', accepts_ranges=True)
        parts = read_ahead.ReadAhead(Web(min_rate=0, stall_timeout=60), image, GrowingFile(fd, 1 << 40))
        assert await parts.read(start, start + 1000) is None
        assert await parts.read(start, start + 1000) is None  # without another request
        assert len(server.requests) == 1
    os.close(fd)


# --- proxies ------------------------------------------------------------------------------------------


async def tunnel(stream, asked):
    """Answer one CONNECT, then forward bytes in both directions."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    asked.append(head.split(b"\r\n")[0])
    port = int(head.split(b" ")[1].rpartition(b":")[2])
    inner = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"HTTP/1.1 200 Go\r\n\r\n")

    async def pump(source, target):
        try:
            while data := await source.receive_some(65536):
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    async with inner, trio.open_nursery() as nursery:
        nursery.start_soon(pump, stream, inner)
        nursery.start_soon(pump, inner, stream)


@pytest.mark.parametrize("way", [save, read])
@pytest.mark.parametrize("outer", ["http", "https"])
async def test_tls_through_a_proxy(outer, way, tls, tmp_path, monkeypatch):
    """Includes TLS within the proxy's own TLS, which no thread can read."""
    asked = []
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    serve = trio.serve_tcp if outer == "http" else trio.serve_ssl_over_tcp
    arguments = [lambda stream: tunnel(stream, asked), 0] + ([] if outer == "http" else [tls])
    async with raw_server(holds(IMAGE), tls) as server, trio.open_nursery() as nursery:
        listeners = await nursery.start(serve, *arguments)
        listener = getattr(listeners[0], "transport_listener", listeners[0])
        web = Web(proxy=f"{outer}://127.0.0.1:{listener.socket.getsockname()[1]}", ca_file=str(tmp_path / "ca.pem"))
        assert await way(web, server.url, tmp_path / "out") in {len(IMAGE), IMAGE}
        assert way is read or (tmp_path / "out").read_bytes() == IMAGE
        assert asked == [b"CONNECT 127.0.0.1:%d HTTP/1.1" % server.port]
        await web.aclose()
        nursery.cancel_scope.cancel()


async def test_proxy_refusal_hides_reason():
    async with raw_server(says("403 5ECRET\nContent-Length: 0")) as proxy:
        with pytest.raises(RemoteUnavailableError, match=r"the proxy refused the connection \(HTTP 403\)") as caught:
            await Web(proxy=proxy.url).stat("https://images.example.com/disk?x=5ECRET")
        assert "5ECRET" not in str(caught.value)
