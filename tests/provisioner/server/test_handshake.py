"""Refused TLS handshakes on real sockets: the client gets the alert or an answer, and the log exactly one line."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import structlog.testing
import trio

from provisioner.pki.certificates import Authority, certificate_pem, key_pem, new_key, read_certificate, read_key
from tests.provisioner.tls.test_peer_certificate import tls_harness

pytestmark = pytest.mark.slow  # real TLS handshakes

NOW = datetime.now(UTC)
EVENTS = {"client certificate refused", "TLS handshake failed", "plain HTTP on the TLS port", "a connection failed"}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def lines():
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
async def tls(tmp_path, lines):
    async with tls_harness(tmp_path, tls_minimum="1.2") as made:
        yield made


def only_line(lines):
    """The one line that connections left."""
    (line,) = [line for line in lines if line["event"] in EVENTS]
    assert line["address"] == "127.0.0.1"
    return line["event"], line["reason"]


def port(tls):
    return int(tls.url.rpartition(":")[2])


async def alert(tls, context):
    """The name of the alert that ends the connection, without the prefix that varies between versions of OpenSSL."""

    def talk():
        with (
            socket.create_connection(("127.0.0.1", port(tls)), timeout=30) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return wrapped.recv(1000)

    with pytest.raises(ssl.SSLError) as raised:
        await trio.to_thread.run_sync(talk)
    return raised.value.reason.partition("_ALERT_")[2]


def certificate(tls, kind):
    if kind == "early":
        return tls.ca.issue_cert("viewer.example", not_before=NOW + timedelta(1), not_after=NOW + timedelta(9))
    if kind == "expired":
        return tls.ca.issue_cert("viewer.example", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1))
    return tls.stranger.issue_cert("viewer.example")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "expected", "reason"),
    [
        ("expired", "CERTIFICATE_EXPIRED", "it has expired"),
        ("early", "BAD_CERTIFICATE", "it is not valid yet"),
        ("unknown CA", "UNKNOWN_CA", "no CA in client_ca has signed it"),
    ],
)
async def test_refused_certificate(tls, lines, version, kind, expected, reason):
    context = tls.context(certificate(tls, kind), version)
    assert await alert(tls, context) == expected
    assert only_line(lines) == ("client certificate refused", reason)


async def test_revoked_certificate(tmp_path, lines):
    async with tls_harness(tmp_path) as tls:
        revoked = tls.ca.issue_cert("viewer.example")
        tls.write_crl(revoked)
        tls.reread(client_crl=tls.crl)
        assert await alert(tls, tls.context(revoked)) == "CERTIFICATE_REVOKED"
    assert only_line(lines) == ("client certificate refused", "it is revoked")


async def test_expired_revocation_list(tls, lines):
    tls.write_crl(ends=NOW - timedelta(hours=1))
    tls.reread(client_crl=tls.crl)
    assert await alert(tls, tls.context(tls.ca.issue_cert("viewer.example"))) == "CERTIFICATE_EXPIRED"
    reason = "the revocation list of its CA has expired (client_crl)"
    assert only_line(lines) == ("client certificate refused", reason)


async def test_no_revocation_list_of_the_ca(tls, lines):
    tls.write_crl(of=tls.stranger)
    tls.reread(client_crl=tls.crl)
    assert await alert(tls, tls.context(tls.ca.issue_cert("viewer.example"))) == "UNKNOWN_CA"
    assert only_line(lines) == ("client certificate refused", "client_crl has no revocation list of its CA")


async def test_server_certificate_of_a_client(tls, lines, tmp_path):
    ca = Authority(read_certificate(tls.ca.cert_pem.bytes(), "ca"), read_key(tls.ca.private_key_pem.bytes(), "ca"))
    key = new_key()
    made = ca.issue_server(key.public_key(), ("viewer.example",), 1)
    (tmp_path / "me.pem").write_bytes(certificate_pem(made) + key_pem(key))
    context = tls.context()
    context.load_cert_chain(tmp_path / "me.pem")
    assert await alert(tls, context) == "UNSUPPORTED_CERTIFICATE"
    assert only_line(lines) == ("client certificate refused", "it is not made for clients")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (ssl.TLSVersion.TLSv1_2, "HANDSHAKE_FAILURE"),
        (ssl.TLSVersion.TLSv1_3, "CERTIFICATE_REQUIRED"),
    ],
)
async def test_missing_certificate(tmp_path, lines, version, expected):
    audit = tmp_path / "audit.log"
    async with tls_harness(tmp_path, client_certificate="required", tls_minimum="1.2", audit=audit) as tls:
        assert await alert(tls, tls.context(version=version)) == expected
    reason = "the client sent no certificate, and one is required"
    assert only_line(lines) == ("client certificate refused", reason)
    (line,) = map(json.loads, audit.read_text().splitlines())
    assert (line["event"], line["reason"]) == ("handshake", reason)


async def test_old_protocol(tmp_path, lines):
    async with tls_harness(tmp_path) as tls:
        assert await alert(tls, tls.context(version=ssl.TLSVersion.TLSv1_2)) == "PROTOCOL_VERSION"
    reason = "the client offers no TLS version that is allowed here (tls_minimum)"
    assert only_line(lines) == ("TLS handshake failed", reason)


async def test_no_shared_cipher(tls, lines):
    context = tls.context(version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("AES128-SHA")
    assert await alert(tls, context) == "HANDSHAKE_FAILURE"
    assert only_line(lines) == ("TLS handshake failed", "the client offers no cipher suite that is allowed here")


async def test_client_refuses_the_server(tmp_path, lines):
    """Its alert is the reason in the log."""
    async with tls_harness(tmp_path) as tls:
        with pytest.raises(httpx.ConnectError):  # trio's TLS would not send the alert
            await trio.to_thread.run_sync(lambda: httpx.get(tls.url, trust_env=False))
    assert only_line(lines) == (
        "TLS handshake failed",
        "the client does not trust the CA of this server's certificate",
    )


async def test_openssl_sees_the_alert(tls, lines, tmp_path):
    """A client of another make; it sends nothing after its handshake."""
    certificate(tls, "expired").private_key_and_cert_chain_pem.write_to_path(tmp_path / "expired.pem")
    command = [
        "openssl",
        "s_client",
        "-ign_eof",
        "-connect",
        f"127.0.0.1:{port(tls)}",
        "-cert",
        tmp_path / "expired.pem",
    ]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert b"alert certificate expired" in done.stdout
    assert only_line(lines) == ("client certificate refused", "it has expired")


async def exchange(tls, data):
    """What the server answers to the bytes until it closes."""
    got = b""
    with trio.fail_after(30):
        async with await trio.open_tcp_stream("127.0.0.1", port(tls)) as stream:
            await stream.send_all(data)
            async for chunk in stream:
                got += chunk
    return got


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_plain_http(tls, lines, method):
    async with httpx.AsyncClient(base_url=tls.url.replace("https", "http"), trust_env=False) as client:
        answer = await client.request(method, "/api/v1/jobs", headers={"X-Request-ID": "mine"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json() == {
        "error": "https required",
        "message": "this port speaks https; use an address that begins with https://",
        "code": 400,
        "reason": "https-required",
    }
    assert only_line(lines) == ("plain HTTP on the TLS port", "the client does not speak TLS")
    assert [line["request_id"] for line in lines if line["event"] in EVENTS] == ["mine"]


async def test_plain_http_head_and_http_2(tls):
    head = await exchange(tls, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert head.endswith(b"\r\n\r\n")
    http_2 = await exchange(tls, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert json.loads(http_2.partition(b"\r\n\r\n")[2])["error"] == "https required"


async def test_plain_http_in_pieces(tls):
    """OpenSSL gives up after five bytes."""
    assert (await exchange(tls, b"DELET")).startswith(b"HTTP/1.1 400 ")


async def test_plain_http_with_a_long_body(tls):
    """The rest of the request does not cost the client the answer."""
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 150000\r\n\r\n"
    assert (await exchange(tls, head + 150_000 * b"x")).startswith(b"HTTP/1.1 400 ")


async def test_other_protocol(tls, lines):
    await exchange(tls, b"SSH-2.0-OpenSSH_9.2\r\n")
    assert only_line(lines) == ("TLS handshake failed", "the client does not speak TLS")


async def test_port_probe_leaves_no_line(tls, lines):
    stream = await trio.open_tcp_stream("127.0.0.1", port(tls))
    await stream.aclose()
    assert (await tls.get(path="/health")).status_code == 200
    assert not [line for line in lines if line["event"] in EVENTS]


async def test_unfinished_handshake(tls, lines):
    tls.listener.config.ssl_handshake_timeout = 0.05
    await exchange(tls, b"\x16\x03\x01")
    assert only_line(lines) == ("TLS handshake failed", "not complete within 0.05 s")
