import os
import socket
import ssl

import httpx
import pytest
import trio
import trustme

from provisioner.contracts import HttpOptions, HttpTransport
from provisioner.contracts.errors import (
    InvalidRequestError,
    RemoteChangedError,
    RemoteDeniedError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from provisioner.contracts.http.socket_io import BUFFER_SIZE, broken
from tests.servers.raw import holds, raw_server, response, says, until_client_hangs_up

CONTENT = bytes(range(251)) * 9000  # 2.2 MB, different at every offset of a buffer


made = []


@pytest.fixture(autouse=True)
def closed_in_the_end():
    """Close idle connections: the garbage collector would warn about them."""
    yield
    while made:
        trio.run(made.pop().aclose)


def transport(allows=lambda _url: True, *more, **options):
    made.append(HttpTransport(HttpOptions(**options), allows, *more))
    return made[-1]


async def save(web, url, path, **span):
    marks = []
    with path.open("w+b") as file:
        async with web.open(url, **span) as stream:
            end = await stream.save(file.fileno(), marks.append)
            return path.read_bytes()[stream.start : end], stream.start, marks


async def read(web, url, **span):
    async with web.open(url, **span) as stream:
        return b"".join([chunk async for chunk in stream]), stream.start


# --- complete bodies ----------------------------------------------------------------------------------


async def test_save_and_read_return_same_bytes(tmp_path):
    async with raw_server(holds(CONTENT)) as server:
        web = transport()
        got, start, marks = await save(web, server.url, tmp_path / "out")
        assert (got == CONTENT, start) == (True, 0)
        assert marks == sorted(marks)
        assert marks[-1] == len(CONTENT)
        assert (await read(web, server.url))[0] == CONTENT
        assert await read(web, server.url, start=10, stop=900_000) == (CONTENT[10:900_000], 10)
        assert (await save(web, server.url, tmp_path / "out", start=10))[:2] == (CONTENT[10:], 10)


async def test_save_and_read_over_tls(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with raw_server(holds(CONTENT), context) as server:
        web = transport(ca_file=str(tmp_path / "ca.pem"))
        assert (await save(web, server.url, tmp_path / "out"))[0] == CONTENT
        assert (await read(web, server.url))[0] == CONTENT


async def test_save_chunked_body(tmp_path):
    async with raw_server(says("200 OK\nTransfer-Encoding: chunked", _chunked(CONTENT))) as server:
        web = transport()
        assert (await web.stat(server.url)).size is None
        assert (await save(web, server.url, tmp_path / "out"))[0] == CONTENT
        assert (await save(web, server.url, tmp_path / "out", start=5, stop=70_000))[:2] == (CONTENT[:70_000], 0)


async def test_save_and_read_empty_body(tmp_path):
    async with raw_server(holds(b"")) as server:
        assert await save(transport(), server.url, tmp_path / "out") == (b"", 0, [])
        assert await read(transport(), server.url) == (b"", 0)


async def test_save_from_server_without_ranges(tmp_path):
    async with raw_server(says(f"200 OK\nContent-Length: {len(CONTENT)}", CONTENT)) as server:
        got, start, _ = await save(transport(), server.url, tmp_path / "out", start=1000, stop=2000)
        assert (got, start) == (CONTENT[:2000], 0)


async def test_save_ignores_bytes_after_length(tmp_path):
    async with raw_server(says("200 OK\nContent-Length: 1000", CONTENT)) as server:
        assert (await save(transport(), server.url, tmp_path / "out"))[0] == CONTENT[:1000]


async def test_read_wrong_range():
    async with raw_server(says("206 Partial\nContent-Range: bytes 0-9/20\nContent-Length: 10", b"x" * 10)) as server:
        with pytest.raises(SourceError, match="a different range") as caught:
            await read(transport(), server.url, start=10)
        assert not caught.value.temporary


async def test_save_short_range(tmp_path):
    async with raw_server(says("206 Partial\nContent-Range: bytes 5-9/20\nContent-Length: 5", b"abcde")) as server:
        with pytest.raises(RemoteUnavailableError, match="10 bytes too early"):
            await save(transport(), server.url, tmp_path / "out", start=5)
        assert (tmp_path / "out").read_bytes() == b"\0\0\0\0\0abcde"


# --- failing transfers --------------------------------------------------------------------------------


async def test_save_keeps_bytes_before_disconnect(tmp_path):
    part = BUFFER_SIZE + 12345
    marks = []
    async with raw_server(says(f"200 OK\nContent-Length: {len(CONTENT)}", CONTENT[:part])) as server:
        with (tmp_path / "out").open("w+b") as file:
            async with transport().open(server.url) as stream:
                with pytest.raises(RemoteUnavailableError, match=f"{len(CONTENT) - part} bytes too early") as caught:
                    await stream.save(file.fileno(), marks.append)
        assert caught.value.temporary
        assert marks[-1] == part
        assert (tmp_path / "out").read_bytes() == CONTENT[:part]
        with pytest.raises(RemoteUnavailableError, match="closed connection"):
            await read(transport(), server.url)


async def test_save_keeps_bytes_before_reset(tmp_path):
    part = 50_000

    async def reset(_request, stream):
        await stream.send_all(response(f"200 OK\nContent-Length: {len(CONTENT)}", CONTENT[:part]))
        await arrived.wait()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()

    def report(end):
        if end == part:
            trio.from_thread.run_sync(arrived.set)

    arrived = trio.Event()
    async with raw_server(reset) as server:
        with pytest.raises(RemoteUnavailableError) as caught, (tmp_path / "out").open("w+b") as file:
            async with transport().open(server.url) as stream:
                await stream.save(file.fileno(), report)
        assert caught.value.temporary
        assert (tmp_path / "out").read_bytes() == CONTENT[:part]


@pytest.mark.parametrize("head", ["200 OK\nContent-Length: 1000", "200 OK\nTransfer-Encoding: chunked"])
async def test_save_stalled_body(head, tmp_path):
    async def stall(_request, stream):
        await stream.send_all(response(head, b"3\r\nabc\r\n"))
        await until_client_hangs_up(stream)

    async with raw_server(stall) as server:
        with pytest.raises(RemoteUnavailableError, match="stalled") as caught:
            await save(transport(stall_timeout=0.2), server.url, tmp_path / "out")
        assert caught.value.temporary
        await server.hung_up.wait()


async def test_stat_silent_server():
    async def silence(_request, stream):
        await until_client_hangs_up(stream)

    async with raw_server(silence) as server:
        with pytest.raises(RemoteUnavailableError, match="stalled"):
            await transport(stall_timeout=0.2).stat(server.url)
        await server.hung_up.wait()


async def test_save_slow_server(tmp_path):
    async def drip(_request, stream):
        await stream.send_all(response("200 OK\nContent-Length: 20"))
        for _ in range(20):
            await trio.sleep(0.05)
            await stream.send_all(b"x")

    async with raw_server(drip) as server:
        _, _, marks = await save(transport(stall_timeout=0.5, min_rate=10), server.url, tmp_path / "out")
        # The bytes are written well before the buffer is full.
        assert len(marks) > 2


async def test_save_truncated_chunks(tmp_path):
    async with raw_server(says("200 OK\nTransfer-Encoding: chunked", b"5\r\nabc")) as server:
        with pytest.raises(RemoteUnavailableError, match="closed connection"):
            await save(transport(), server.url, tmp_path / "out")


async def test_stat_server_without_http():
    async def babble(_request, stream):
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async with raw_server(babble) as server:
        with pytest.raises(RemoteUnavailableError):
            await transport().stat(server.url)


async def test_stat_connection_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteUnavailableError, match="Connection refused") as caught:
        await transport().stat(f"http://127.0.0.1:{port}/")
    assert caught.value.temporary


async def test_save_to_full_disk():
    async with raw_server(holds(CONTENT)) as server, transport().open(server.url) as stream:
        full = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OSError, match="No space left"):
            await stream.save(full, lambda _end: None)
        os.close(full)


async def test_unexpected_encoding():
    answer = says("200 OK\nContent-Length: 3\nContent-Encoding: br", b"abc")
    async with raw_server(answer) as server:
        for attempt in (transport().stat(f"{server.url}/disk"), read(transport(), f"{server.url}/disk")):
            with pytest.raises(SourceError, match="encoding 'br'"):
                await attempt
        assert await read(transport(any_encoding=True), f"{server.url}/disk") == (b"abc", 0)
        assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


# --- versions -----------------------------------------------------------------------------------------


async def test_range_request_sends_if_range():
    async with raw_server(holds(CONTENT)) as server:
        assert await read(transport(), server.url, start=5, version='"v1"') == (CONTENT[5:], 5)
        headers = server.requests[0].headers
        assert (headers["range"], headers["if-range"]) == ("bytes=5-", '"v1"')


@pytest.mark.parametrize("version", ['"v0"', "modified Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_open_changed_version(version):
    async with raw_server(holds(CONTENT)) as server:
        for start in (0, 5):
            with pytest.raises(RemoteChangedError) as caught:
                await read(transport(), server.url, start=start, version=version)
            assert caught.value.temporary


async def test_open_range_beyond_end():
    async with raw_server(holds(CONTENT)) as server:
        with pytest.raises(RemoteChangedError):
            await read(transport(), server.url, start=len(CONTENT) + 1, version='"v1"')


# --- HEAD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 405, 501])
@pytest.mark.parametrize("content", [CONTENT, b""])
async def test_stat_server_without_head(status, content):
    good = holds(content)

    async def answer(request, stream):
        await (says(f"{status} No\nContent-Length: 0") if request.method == "HEAD" else good)(request, stream)

    async with raw_server(answer) as server:
        image = await transport().stat(server.url)
        assert image.size == len(content)
        assert [request.method for request in server.requests] == ["HEAD", "GET"]
        await server.hung_up.wait()


async def test_stat_denied_to_head_and_get():
    async with raw_server(says("403 No\nContent-Length: 0")) as server:
        with pytest.raises(RemoteDeniedError):
            await transport().stat(server.url)


# --- redirects ----------------------------------------------------------------------------------------


async def test_redirects_checked_and_limited():
    async def answer(request, stream):
        await says(f"307 On\nLocation: {places[request.target]}\nContent-Length: 0")(request, stream)

    places = {"/round": "/round", "/relative": "b#part", "/b": "file:///etc/passwd", "/": "http://169.254.169.254/"}
    async with raw_server(answer) as server:
        web = transport(lambda url: url.text.startswith(server.url))
        with pytest.raises(SourceError, match="more than 5 times"):
            await web.stat(f"{server.url}/round")
        assert len(server.requests) == 6
        with pytest.raises(UrlNotAllowedError, match="redirects there"):
            await web.stat(f"{server.url}/relative")
        with pytest.raises(UrlNotAllowedError, match=r"169\.254\.169\.254"):
            await web.stat(f"{server.url}/")


@pytest.mark.parametrize("url", ["no url", "file://host/pub", "http://me:secret@127.0.0.1/pub"])
async def test_invalid_url_is_not_fetched(url):
    with pytest.raises(UrlNotAllowedError, match=r"^the url belongs to no configured source$"):
        await transport().stat(url)


async def test_prepare_after_redirect():
    def sign(_method, url, headers):
        signed.append(url.text)
        return {**headers, "X-Signed": "yes"}

    for everywhere, expected in ((False, False), (True, True)):
        signed = []
        moved = "302 On\nLocation: {}/b\nContent-Length: 0"
        async with raw_server(holds(b"abc")) as last, raw_server(says(moved.format(last.url))) as first:
            web = transport(lambda _url: True, sign, prepare_redirects=everywhere)
            await web.stat(f"{first.url}/a")
            assert "x-signed" in first.requests[0].headers
            assert ("x-signed" in last.requests[0].headers) is expected
            assert signed == [f"{first.url}/a", *([f"{last.url}/b"] if expected else [])]


async def test_cookies_not_sent_back():
    async with raw_server(says("200 OK\nSet-Cookie: session=1; Path=/\nContent-Length: 0")) as server:
        web = transport()
        await web.stat(server.url)
        await web.stat(server.url)
        assert "cookie" not in server.requests[1].headers


# --- error bodies -------------------------------------------------------------------------------------


async def test_error_body_explained():
    def explain(status, _headers, body, where):
        return RemoteDeniedError(f"{where}: {status} {body.decode()}")

    async with raw_server(says("404 No\nContent-Length: 9", b"no bucket")) as server:
        web = transport(lambda _url: True, None, explain)
        for attempt in (web.stat(server.url), read(web, server.url)):
            with pytest.raises(RemoteDeniedError, match="404 no bucket"):
                await attempt


# --- cancel -------------------------------------------------------------------------------------------


async def cancelled(work, when):
    """Run ``work`` and cancel it once ``when`` is set; it must end before its own timeouts (30 s)."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await when.wait()
            nursery.cancel_scope.cancel()


async def test_cancel_while_connecting():
    async def connect():
        asked.set()
        await transport().stat(f"https://127.0.0.1:{deaf.getsockname()[1]}/")

    asked = trio.Event()
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # the kernel accepts, but there is no handshake
        await cancelled(connect, asked)


async def test_cancel_while_waiting_for_response():
    async def answer(request, stream):
        await may_answer.wait()
        await stream.send_all(response("200 OK\nContent-Length: 1000"))
        await until_client_hangs_up(stream)

    may_answer = trio.Event()
    async with raw_server(answer) as server:
        await cancelled(lambda: read(transport(), server.url), server.asked)
        may_answer.set()
        with trio.fail_after(30):
            await server.hung_up.wait()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("way", ["save", "read"])
@pytest.mark.parametrize("head", ["200 OK\nContent-Length: 1000", "200 OK\nTransfer-Encoding: chunked"])
async def test_cancel_while_reading_body(way, head, tls, tmp_path):
    async def answer(_request, stream):
        await stream.send_all(response(head, b"3\r\nabc\r\n"))
        sent.set()
        await until_client_hangs_up(stream)

    async def work():
        await (save(web, server.url, tmp_path / "out") if way == "save" else read(web, server.url))

    sent, authority = trio.Event(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    web = transport(ca_file=str(tmp_path / "ca.pem"))
    async with raw_server(answer, context if tls else None) as server:
        await cancelled(work, sent)
        with trio.fail_after(30):
            await server.hung_up.wait()


async def test_cancel_while_rate_limited(tmp_path):
    async def work():
        with (tmp_path / "out").open("w+b") as file:
            async with transport(rate_limit=1024).open(server.url) as stream:
                await stream.save(file.fileno(), lambda _end: trio.from_thread.run_sync(first.set))

    first = trio.Event()
    async with raw_server(holds(CONTENT)) as server:
        await cancelled(work, first)


async def test_cancel_releases_connection(tmp_path):
    async def stall(_request, stream):
        await stream.send_all(response("200 OK\nContent-Length: 1000"))
        await until_client_hangs_up(stream)

    web = transport(connections=1)
    async with raw_server(stall) as deaf, raw_server(holds(b"abc")) as server:
        await cancelled(lambda: save(web, deaf.url, tmp_path / "out"), deaf.asked)
        with trio.fail_after(30):
            assert await read(web, server.url) == (b"abc", 0)


# --- translation of library errors --------------------------------------------------------------------


def unconnected(cause):
    error = httpx.ConnectError("x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "temporary", "words"),
    [
        (httpx.ConnectTimeout("x"), RemoteUnavailableError, True, "connecting timed out"),
        (httpx.ReadTimeout("x"), RemoteUnavailableError, True, "stalled"),
        (TimeoutError("timed out"), RemoteUnavailableError, True, "stalled"),
        (ConnectionResetError(104, "reset by peer"), RemoteUnavailableError, True, "reset by peer"),
        (unconnected(socket.gaierror(socket.EAI_NONAME, "?")), SourceError, False, "host not found"),
        (unconnected(socket.gaierror(socket.EAI_AGAIN, "?")), RemoteUnavailableError, True, "reached"),
        (unconnected(ssl.SSLError(1, "WRONG_VERSION")), RemoteUnavailableError, True, "WRONG_VERSION"),
        (httpx.LocalProtocolError("Illegal header value b'hunter2'"), SourceError, False, "headers is invalid"),
        (httpx.UnsupportedProtocol("x"), InvalidRequestError, False, "not a url"),
    ],
)
def test_broken_kind_and_temporary(error, kind, temporary, words):
    found = broken(error, "https://a/b")
    assert type(found) is kind
    assert found.temporary is temporary
    assert words in found.message
    assert "hunter2" not in found.message


def _chunked(content):
    pieces = [content[at : at + 100_001] for at in range(0, len(content), 100_001)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
