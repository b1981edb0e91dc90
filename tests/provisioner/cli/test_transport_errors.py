"""Each way in which a request gets no usable response: its own message, what to do, and one exit status."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.error import URLError

import pytest
import structlog.testing
import trio
import trustme

from provisioner.cli.client_settings import ClientSettings
from provisioner.cli.transport_errors import UnreachableError, transport_errors
from tests.provisioner.tls.test_peer_certificate import tls_harness
from tests.servers.broken import broken_server, silent

NOW = datetime.now(UTC)
PAST, PRESENT, FUTURE = ((NOW + timedelta(a), NOW + timedelta(b)) for a, b in ((-9, -1), (-1, 9), (1, 9)))


def said(ended, status=5):
    """The one sentence on standard error."""
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("Error: ").rstrip("\n")


# ---- The server's certificate, checked here


@pytest.fixture
def ca(home):
    made = trustme.CA()
    made.cert_pem.write_to_path(home / "ca.pem")
    return made


@pytest.fixture
def serve_tls(server, ca):
    """Starts the server with a certificate of the CA."""

    def serve(name="localhost", valid=PRESENT):
        server.stop()
        server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(name, not_before=valid[0], not_after=valid[1]).configure_cert(server.tls)
        server.start()
        server.on("GET", "/health", "HealthHealthy")
        return server.url

    return serve


def test_server_certificate_expired(serve_tls, run, home):
    url = serve_tls(valid=PAST)
    assert said(run("health", "--url", url, "--ca", home / "ca.pem")) == (
        f"the certificate of {url} has expired; renew it on the server, or correct this machine's clock"
    )


def test_server_certificate_not_yet_valid(serve_tls, run, home):
    url = serve_tls(valid=FUTURE)
    assert said(run("health", "--url", url, "--ca", home / "ca.pem")) == (
        f"the certificate of {url} is not valid yet; correct the clock of this machine or of the server"
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_server_certificate_for_another_name(serve_tls, run, home, host):
    url = serve_tls("kvm-7.example.org").replace("localhost", host)
    assert said(run("health", "--url", url, "--ca", home / "ca.pem")) == (
        f"the certificate of {url} is not for the name {host}; use one of its names in --url, LVP_URL or url in "
        "lvp.toml, or renew it with this name"
    )


def test_server_certificate_of_unknown_ca(serve_tls, run, home):
    url = serve_tls()
    assert said(run("health", "--url", url)) == (
        f"the certificate of {url} is not trusted: its CA is unknown; name its CA with --ca, LVP_CA or ca in lvp.toml"
    )
    other = home / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    assert said(run("health", "--url", url, "--ca", other)) == (
        f"the certificate of {url} is not trusted: the CA in {other} has not signed it; name its CA with --ca, "
        "LVP_CA or ca in lvp.toml"
    )


# ---- Our certificate or token, refused by the real server


@pytest.fixture
async def tls(tmp_path, home):
    with structlog.testing.capture_logs():
        async with tls_harness(tmp_path) as made:
            yield made


class Client:
    """``lvp`` with a certificate against a server."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder

    async def __call__(self, tls, certificate=None, *, command=("job", "list"), url=None, token=None):
        args = [*command, "--url", url or tls.url, "--ca", self.folder / "ca.pem"]
        if certificate is not None:
            certificate.private_key_and_cert_chain_pem.write_to_path(self.cert)
            args += ["--cert", self.cert]
        if token is not None:
            args += ["--token", token]
        return await trio.to_thread.run_sync(lambda: self.run(*args))

    @property
    def cert(self):
        return self.folder / "me.pem"


@pytest.fixture
def lvp_with(run, home):
    return Client(run, home)


NAME_ANOTHER = "--cert, LVP_CERT or cert in lvp.toml"


async def test_client_certificate_expired(tls, lvp_with):
    ended = await lvp_with(tls, tls.ca.issue_cert("viewer.example", not_before=PAST[0], not_after=PAST[1]))
    assert said(ended) == (
        f"{tls.url} refused the client certificate {lvp_with.cert}: it has expired; name another with {NAME_ANOTHER}"
    )


async def test_client_certificate_expired_only_there(tls, lvp_with):
    """The alert for an expired revocation list is the same; the certificate itself tells the difference."""
    tls.write_crl(ends=NOW - timedelta(hours=1))
    tls.reread(client_crl=tls.crl)
    assert said(await lvp_with(tls, tls.ca.issue_cert("viewer.example"))) == (
        f"{tls.url} refused the client certificate {lvp_with.cert}: it is expired there, but not here; check the "
        "server's clock and its revocation list (client_crl)"
    )


async def test_client_certificate_revoked(tls, lvp_with):
    certificate = tls.ca.issue_cert("viewer.example")
    tls.write_crl(certificate)
    tls.reread(client_crl=tls.crl)
    assert said(await lvp_with(tls, certificate)) == (
        f"{tls.url} refused the client certificate {lvp_with.cert}: it is revoked; name another with {NAME_ANOTHER}"
    )


async def test_client_certificate_of_unknown_ca(tls, lvp_with):
    assert said(await lvp_with(tls, tls.stranger.issue_cert("viewer.example"))) == (
        f"{tls.url} refused the client certificate {lvp_with.cert}: the server does not trust its CA (client_ca in the "
        f"server's configuration); name another with {NAME_ANOTHER}"
    )


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_client_certificate_missing(tmp_path, lvp_with, monkeypatch, version):
    if version == "1.2":
        _use_old_tls(monkeypatch)
    with structlog.testing.capture_logs():
        async with tls_harness(tmp_path, client_certificate="required", tls_minimum="1.2") as tls:
            assert said(await lvp_with(tls)) == (
                f"{tls.url} refused the connection: it needs a client certificate; name one with {NAME_ANOTHER}"
            )


async def test_old_tls(tls, lvp_with, monkeypatch):
    _use_old_tls(monkeypatch)
    assert "accepts no TLS version of this machine" in said(await lvp_with(tls))


def _use_old_tls(monkeypatch):
    """What an old machine's library does."""
    make = ssl.create_default_context

    def old(*args, **options):
        context = make(*args, **options)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    monkeypatch.setattr("provisioner.cli.transport.ssl.create_default_context", old)


async def test_client_certificate_without_role(tls, lvp_with):
    assert said(await lvp_with(tls, tls.ca.issue_cert("x", common_name="unknown")), 4) == (
        "the client certificate unknown has no role here; the server must have client_ca, and a role for this "
        "certificate in [auth.certificates] [unauthorized]"
    )


async def test_token_unknown(tls, lvp_with):
    assert said(await lvp_with(tls, token="lvp_mistyped"), 4) == (
        "the API token is unknown: it is wrong or was revoked; give another token with --token-file, LVP_TOKEN_FILE or "
        "token_file in lvp.toml [unauthorized]"
    )


async def test_token_expired(tls, lvp_with):
    token = tls.service.tokens.create("ci", "viewer", expires_at=time.time() - 60)
    words = said(await lvp_with(tls, token=token), 4)
    assert words.startswith("the API token ci expired at 20")
    hint = "; give another token with --token-file, LVP_TOKEN_FILE or token_file in lvp.toml [unauthorized]"
    assert words.endswith(hint)


async def test_no_credential(tls, lvp_with):
    assert said(await lvp_with(tls), 4) == (
        "a client certificate or a valid API token in X-API-Token is needed; give a token with --token-file or "
        f"LVP_TOKEN_FILE, or a certificate with {NAME_ANOTHER} [unauthorized]"
    )


# ---- TLS on one side only


async def test_http_to_tls_port(tls, lvp_with):
    url = tls.url.replace("https", "http")
    for command in (("health",), ("cache", "prune")):
        assert said(await lvp_with(tls, command=command, url=url)) == (
            f"{url} speaks https; use {tls.url} in --url, LVP_URL or url in lvp.toml"
        )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",  # Go's words
        b"\x15\x03\x01\x00\x02\x02\x46",  # an alert
    ],
)
def test_http_to_other_tls_servers(run, answer):
    with answering(answer) as port:
        assert "speaks https" in said(run("health", "--url", f"http://127.0.0.1:{port}"))


@contextmanager
def answering(data):
    """A port that answers every connection with these bytes, once the client has sent something, and closes."""

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(data)

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
def test_https_to_port_without_tls(run, data):
    with answering(data) as port:
        url = f"https://127.0.0.1:{port}"
        assert said(run("health", "--url", url)) == (
            f"{url} does not speak TLS; correct the port, or use http:// in --url, LVP_URL or url in lvp.toml"
        )


def test_https_to_plain_server(run, server):
    assert "does not speak TLS" in said(run("health", "--url", server.url.replace("http", "https")))


def test_https_to_port_that_closes(run):
    with answering(b"") as port:
        url = f"https://127.0.0.1:{port}"
        assert said(run("health", "--url", url)) == (
            f"{url} closed the connection during the TLS handshake; check that this port speaks https"
        )


@pytest.mark.parametrize("closed", [ssl.SSLEOFError, ssl.SSLZeroReturnError])
def test_closed_during_handshake(closed):
    """Which of them it is depends on when OpenSSL notices that the connection is closed."""
    url = "https://kvm-7.example:8080"
    with pytest.raises(UnreachableError) as raised, transport_errors(ClientSettings(url)):
        raise URLError(closed(6, "TLS/SSL connection has been closed (EOF)"))
    assert raised.value.message == (
        f"{url} closed the connection during the TLS handshake; check that this port speaks https"
    )


# ---- No server


def test_nothing_listens(run, server):
    server.stop()
    assert said(run("health", "--url", server.url)) == (
        f"nothing listens at {server.url}; start the server, or correct --url, LVP_URL or url in lvp.toml"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (socket.EAI_NONAME, "the name kvm-7.example is unknown; correct --url, LVP_URL or url in lvp.toml"),
        (
            socket.EAI_AGAIN,
            "the name kvm-7.example cannot be looked up: no DNS server answers; try again later",
        ),
    ],
)
def test_name_without_address(run, monkeypatch, code, words):
    def look_up(*args, **options):
        raise socket.gaierror(code, "as the resolver says")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert said(run("health", "--url", "https://kvm-7.example:8080")) == words


def test_proxy_that_is_not_there(run, server, monkeypatch):
    server.stop()
    monkeypatch.setenv("https_proxy", f"http://me:hunter2@127.0.0.1:{server.port}")
    assert said(run("health", "--url", "https://kvm-7.example:8080")) == (
        f"https://kvm-7.example:8080 cannot be reached through the proxy 127.0.0.1:{server.port}: Connection refused; "
        "correct HTTPS_PROXY, or name the server in NO_PROXY"
    )


def test_silent_in_the_handshake(run, monkeypatch):
    """Nothing was sent, so the request is not repeated."""
    for module in ("transport", "transport_errors"):
        monkeypatch.setattr(f"provisioner.cli.{module}.CONNECT_TIMEOUT", 0.2)
    with broken_server(silent) as address:
        message = said(run("health", "--url", f"https://{address}"))
    assert message.startswith(f"https://{address} did not answer within 0.2 s; check the firewall")
