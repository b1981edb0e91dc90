"""Tests of mutual TLS on real connections: which certificates are accepted, and that connections are not confused."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from provisioner.config import AuthSettings
from provisioner.contracts.errors import ConfigError
from tests.provisioner.api.conftest import running
from tests.provisioner.api.served import served

pytestmark = pytest.mark.slow  # many real TLS handshakes

ROLES = {"viewer.example": "viewer", "operator.example": "operator", "admin.example": "admin"}
NOW = datetime.now(UTC)


def parsed(issued):
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())


class Harness:
    """A service with TLS, and its clients."""

    def __init__(self, service, url, ca, listener):
        self.service, self.url, self.ca, self.listener = service, url, ca, listener
        self.stranger = trustme.CA()
        self.crl = str(service.folder / "crl.pem")

    def reread(self, **changes):
        """Reload TLS with changed settings, as the daemon does."""
        self.listener.tls.reload(msgspec.structs.replace(self.listener.tls.server, **changes))
        self.service.services.authenticator.use_lists(self.listener.tls.tls_files.lists)

    def write_crl(self, *issued, of=None, ends=None):
        """Write a revocation list with these certificates."""
        ca = of or self.ca
        signer = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
        key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(signer.subject)
            .last_update(NOW - timedelta(1))
            .next_update(ends or NOW + timedelta(30))
        )
        for one in issued:
            serial = parsed(one).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
            made = made.add_revoked_certificate(entry)
        Path(self.crl).write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def context(self, certificate=None, version=None):
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def client(self, certificate=None, *, http2=False, version=None, headers=None):
        context = self.context(certificate, version)
        return httpx.AsyncClient(
            base_url=self.url,
            verify=context,
            http1=not http2,
            http2=http2,
            headers=headers,
            trust_env=False,
            timeout=60,
        )

    async def get(self, certificate=None, path="/api/v1/jobs", **more):
        async with self.client(certificate, **more) as client:
            return await client.get(path)

    async def refused(self, certificate=None, **more):
        """Check that the handshake fails: no request reaches the app."""
        before = self.requests
        with pytest.raises(httpx.TransportError):
            await self.get(certificate, "/health", **more)
        assert self.requests == before

    @property
    def requests(self):
        return sum(
            sample.value
            for metric in self.service.services.metrics.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )


@asynccontextmanager
async def tls_harness(tmp_path, *, auth=None, client_certificate="optional", audit=None, **server):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    file = str(tmp_path / "server.pem")
    settings = auth or AuthSettings(certificate_roles=ROLES, default_certificate_role="none")
    async with (
        running(tmp_path, auth=settings, audit=audit) as service,
        served(
            service,
            tls_certificate=file,
            tls_key=file,
            client_ca=str(tmp_path / "ca.pem"),
            client_certificate=client_certificate,
            **server,
        ) as (url, listener),
    ):
        yield Harness(service, url, ca, listener)


@pytest.fixture
async def tls(tmp_path):
    async with tls_harness(tmp_path, tls_minimum="1.2") as made:
        yield made


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_certificate_authenticates(tls, http2, version):
    anonymous = await tls.get(http2=http2, version=version)
    assert (anonymous.status_code, anonymous.json()["error"]) == (401, "unauthorized")
    known = await tls.get(tls.ca.issue_cert("viewer.example"), http2=http2, version=version)
    assert known.status_code == 200
    assert known.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert (await tls.get(path="/health", http2=http2, version=version)).status_code == 200


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_handshake_with_invalid_certificate(tls, http2, version):
    expired = tls.ca.issue_cert("viewer.example", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1))
    early = tls.ca.issue_cert("viewer.example", not_before=NOW + timedelta(1), not_after=NOW + timedelta(9))
    rogue = tls.stranger.issue_cert("viewer.example")
    rogue_child = tls.stranger.create_child_ca().issue_cert("admin.example")
    for certificate in (expired, early, rogue, rogue_child):
        await tls.refused(certificate, http2=http2, version=version)
    assert (await tls.get(tls.ca.issue_cert("viewer.example"))).status_code == 200


async def test_invalid_certificate_with_token(tls):
    headers = {"X-API-Token": tls.service.token["admin"]}
    await tls.refused(tls.stranger.issue_cert("viewer.example"), headers=headers)
    assert (await tls.get(headers=headers)).status_code == 200


async def test_required_client_certificate(tmp_path):
    async with tls_harness(tmp_path, client_certificate="required") as tls:
        await tls.refused()
        await tls.refused(headers={"X-API-Token": tls.service.token["admin"]})
        assert (await tls.get(tls.ca.issue_cert("viewer.example"))).status_code == 200


async def test_old_protocols_are_refused(tls):
    context = tls.context(tls.ca.issue_cert("viewer.example"))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with httpx.AsyncClient(base_url=tls.url, verify=context, trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/health")


@pytest.mark.parametrize(
    ("name", "status"), [("viewer.example", 403), ("operator.example", 403), ("admin.example", 200)]
)
async def test_role_by_alternative_name(tls, name, status):
    async with tls.client(tls.ca.issue_cert(name)) as client:
        assert (await client.post("/api/v1/cache/prune")).status_code == status


async def test_role_by_common_name(tls):
    certificate = tls.ca.issue_cert("somewhere.example", common_name="admin.example")
    async with tls.client(certificate) as client:
        assert (await client.post("/api/v1/cache/prune")).status_code == 200


async def test_certificate_without_grant(tls, tmp_path):
    assert (await tls.get(tls.ca.issue_cert("unknown.example"))).status_code == 401
    (tmp_path / "2").mkdir()
    async with (
        tls_harness(tmp_path / "2", auth=AuthSettings()) as other,
        other.client(other.ca.issue_cert("unknown.example")) as client,
    ):
        assert (await client.get("/api/v1/jobs")).status_code == 200
        assert (await client.post("/api/v1/cache/fetch", json={})).status_code == 400
        assert (await client.post("/api/v1/cache/prune")).status_code == 403


async def test_no_session_resumption(tls):
    """TLS 1.3 would resume without a certificate, so the server sends no ticket."""
    certificate = tls.ca.issue_cert("viewer.example")
    context = tls.context(certificate)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", int(tls.url.rpartition(":")[2]), ssl_context=context)
    async with stream:
        await stream.send_all(b"GET /api/v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 200")
        session = stream._ssl_object.session
        assert session is None or not session.has_ticket


@pytest.mark.parametrize("http2", [False, True])
async def test_interleaved_connections(tls, http2):
    """Each response names the certificate of its own connection."""
    names = [f"viewer-{number}.example" for number in range(5)]
    tls.service.services.authenticator._settings.certificate_roles.update(dict.fromkeys(names, "viewer"))
    seen = []

    async def ask(client, expected):
        for _ in range(5):
            shown = {} if expected == "a" else {"X-API-Token": "lvp_nonsense"}
            answer = await client.post("/api/v1/cache/prune", headers=shown)
            seen.append((expected, answer.json()["message"].split()[0]))

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for name in [*names, None] * 4:
            certificate = tls.ca.issue_cert(name) if name else None
            client = await stack.enter_async_context(tls.client(certificate, http2=http2))
            for _ in range(2):
                nursery.start_soon(ask, client, name or "a")  # of "a client certificate or a valid API token ..."
    assert len(seen) == 4 * 6 * 2 * 5
    assert all(expected == found for expected, found in seen)


async def test_reload_affects_new_connections(tls, tmp_path):
    server = tls.service.services.config.server
    other = trustme.CA()
    file = tmp_path / "server.pem"
    old = file.read_bytes()
    other.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    named = msgspec.structs.replace(
        server, tls_certificate=str(file), tls_key=str(file), client_ca=str(tmp_path / "ca.pem")
    )
    before = tls.client(tls.ca.issue_cert("viewer.example"))
    async with before:
        assert (await before.get("/health")).status_code == 200
        tls.listener.tls.reload(named)
        assert (await before.get("/api/v1/jobs")).status_code == 200
    with pytest.raises(httpx.ConnectError):
        await tls.get()
    file.write_bytes(old)
    tls.listener.tls.reload(named)
    assert (await tls.get(tls.ca.issue_cert("viewer.example"))).status_code == 200
    file.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"server\.pem"):
        tls.listener.tls.reload(named)
    assert (await tls.get(tls.ca.issue_cert("viewer.example"))).status_code == 200


async def test_silent_client_blocks_no_other(tls):
    port = int(tls.url.rpartition(":")[2])
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
    broken = await trio.open_tcp_stream("127.0.0.1", port)
    await broken.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await tls.get(tls.ca.issue_cert("viewer.example"))).status_code == 200
    for stream in [*silent, broken]:
        await stream.aclose()
