"""No error of the source shows a url's query: the secret is in every url, its own and those of redirects."""

import socket

import pytest
import trio
from structlog.testing import capture_logs

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext, ImageUrl
from provisioner.contracts.errors import ProvisionerError, SourceError
from provisioner.download.checksum_lookup import discover
from provisioner.download.retries import with_retries
from tests.servers.raw import raw_server, response, says

pytestmark = pytest.mark.slow  # new processes

SECRET = "5ECRET"
QUERY = f"?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}&sig={SECRET}&x={SECRET}"


async def hang_up(_request, _stream):
    pass


async def echo(request, stream):
    """Repeat the request in the status line, a header and the body, as error pages do."""
    await stream.send_all(response(f"404 no {request.target}\nX-Request: {request.target}", request.target.encode()))


ANSWERS = {
    **{
        str(status): says(f"{status} No\nContent-Length: 0") for status in (204, 304, 400, 401, 404, 412, 416, 418, 429)
    },
    **{str(status): says(f"{status} No\nContent-Length: 0") for status in (500, 501, 503)},
    "echo": echo,
    "hang up": hang_up,
    "not HTTP": says(f"banana\n\nhttp://a/{QUERY}"),
    "elsewhere": says(f"302 On\nLocation: http://elsewhere.invalid/x{QUERY}\nContent-Length: 0"),
    "in a circle": says(f"302 On\nLocation: /again{QUERY}\nContent-Length: 0"),
    "login": says(f"302 On\nLocation: http://user:{SECRET}@elsewhere.invalid/\nContent-Length: 0"),
    "malformed redirect": says(f"302 On\nLocation: http://[{SECRET}{QUERY}\nContent-Length: 0"),
    "malformed port": says(f"302 On\nLocation: http://127.0.0.1:{SECRET}/{QUERY}\nContent-Length: 0"),
    "encoding": says(f"200 OK\nContent-Encoding: x{QUERY}\nContent-Length: 3", b"abc"),
    "range": says(f"206 Part\nContent-Range: bytes {QUERY}\nContent-Length: 3", b"abc"),
    "other range": says("206 Part\nContent-Range: bytes 5-7/9\nContent-Length: 3", b"abc"),
    "cut": says('200 OK\nContent-Length: 3\nETag: "v1"', b"a"),
    "other version": says('200 OK\nContent-Length: 3\nETag: "v2"', b"abc"),
    "web page": says("200 OK\nContent-Length: 30", f"<html>{SECRET}</html>".ljust(30).encode()),
    "other file": says("200 OK\nContent-Length: 90", f"{'0' * 64}  x{QUERY}\n".encode()[:90].ljust(90)),
}


def make(tmp_path, url):
    settings = HttpSettings(urls=[url], stall_timeout=1, connect_timeout=1)
    return HttpSource(settings, BackEndContext("lab", tmp_path))


async def read(source, url):
    async with source.open(url, 1, 3, '"v1"') as stream:
        async for _ in stream:
            pass


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_errors_and_logs_have_no_secret(tmp_path, answer):
    """Whatever fails, neither the error nor a line of the log has the query."""
    async with raw_server(answer) as server:
        source, url = make(tmp_path, server.url), ImageUrl.parse(f"{server.url}/disk{QUERY}")
        texts = []
        with capture_logs() as logs:
            for work in (source.stat, lambda url: read(source, url), lambda url: discover(source, url)):
                try:
                    texts.append(repr(await with_retries(lambda work=work: work(url), 2)))
                except ProvisionerError as error:
                    texts.append(error.message + str(error) + repr(error))
        assert SECRET not in " ".join(texts).replace(repr(url), "") + repr(logs)
        assert len(texts) == 3
        await source.aclose()


async def test_unreachable_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for host in (base, "http://no-such-host.invalid"):
        source = make(tmp_path, host)
        with pytest.raises(SourceError) as caught, trio.fail_after(30):
            await source.stat(ImageUrl.parse(f"{host}/disk{QUERY}"))
        assert SECRET not in str(caught.value) + repr(caught.value)
        await source.aclose()
