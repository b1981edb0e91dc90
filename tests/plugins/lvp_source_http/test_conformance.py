"""The conformance suite of image sources, with nginx (plain and TLS) and a server without range support."""

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import SourceConformance
from tests.servers.nginx import nginx
from tests.servers.raw import Request, raw_server, says

pytestmark = pytest.mark.slow  # a real nginx


@asynccontextmanager
async def from_nginx(content, *, tls):
    with tempfile.TemporaryDirectory() as folder:
        root, work = Path(folder, "root"), Path(folder, "work")
        with nginx(root, work) as server:
            (root / "image.qcow2").write_bytes(content)
            base = server.tls_url if tls else server.url
            source = HttpSource(HttpSettings(urls=[base], ca_file=str(server.ca_file)), BackEndContext("lab", work))
            yield source, f"{base}/image.qcow2"
            await source.aclose()


class TestNginx(SourceConformance):
    def serve(self, content):
        return from_nginx(content, tls=False)


class TestNginxWithTls(SourceConformance):
    def serve(self, content):
        return from_nginx(content, tls=True)


class TestServerWithoutRanges(SourceConformance):
    @asynccontextmanager
    async def serve(self, content):
        async def answer(request: Request, stream):
            body = b"" if request.method == "HEAD" else content
            found = says(f'200 OK\nContent-Length: {len(content)}\nETag: "v1"', body)
            await (found if request.target == "/image" else says("404 No\nContent-Length: 0"))(request, stream)

        async with raw_server(answer) as server:
            source = HttpSource(HttpSettings(urls=[server.url]), BackEndContext("lab", Path("/nowhere")))
            yield source, f"{server.url}/image"
            await source.aclose()
