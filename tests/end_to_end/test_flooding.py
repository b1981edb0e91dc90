"""Tests of greedy and slow clients: each is disconnected or rejected, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time

import httpx
import psutil
import pytest
import trustme

from tests.end_to_end.daemon import TIMEOUT, Daemon, plain_config, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flooding") / "d"
    made = Daemon(folder, plain_config(folder, server={"max_connections_per_address": 20})).start()
    yield made
    assert made.stop() == 0
    assert not made.events("a request failed")


@pytest.fixture
def connect(daemon):
    """Return a function that opens connections; they are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def connect(data=b"", **options):
            made = stack.enter_context(socket.socket())
            for option, value in options.items():
                made.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
            made.connect(("127.0.0.1", int(daemon.url.rpartition(":")[2])))
            made.settimeout(TIMEOUT)
            made.sendall(data)
            return made

        yield connect


def served(daemon):
    """Check that another client is served."""
    assert httpx.get(f"{daemon.url}/health", trust_env=False, timeout=TIMEOUT).status_code == 200


def rest(sock):
    """Return what the server sends until it closes the connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            got += chunk
    return got


def head(daemon, line, *headers):
    return "\r\n".join([line, "Host: x", f"X-API-Token: {daemon.token}", *headers, "", ""]).encode()


JSON = "Content-Type: application/json"


def test_slow_clients_are_disconnected(daemon, connect):
    """At the same time: no data, half a head, a head byte by byte, half a body, a body byte by byte, an idle client."""
    half_body = head(daemon, "POST /api/v1/jobs HTTP/1.1", JSON, "Content-Length: 1000")
    slow = {
        "nothing": connect(),
        "half a head": connect(b"GET /health HTTP/1.1\r\nHos"),
        "head": connect(b"GET /health HTTP/1.1\r\nX: "),
        "half a body": connect(half_body + b"{"),
        "body": connect(half_body),
        "after an answer": connect(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
        "half a preface": connect(b"PRI * HTTP/2.0\r\n\r\nSM"),
    }
    ended, said = set(), dict.fromkeys(slow, b"")
    for sock in slow.values():
        sock.settimeout(0.2)

    first = b""
    while not first.endswith(b"}"):
        with contextlib.suppress(TimeoutError):
            first += slow["after an answer"].recv(65536)
    said["after an answer"] = first

    def drip():
        nonlocal ended
        for name, sock in slow.items():
            if name in ended:
                continue
            with contextlib.suppress(TimeoutError):
                try:
                    if name in {"head", "body"}:
                        sock.sendall(b"x")
                    got = sock.recv(65536)
                except ConnectionError:
                    got = b""
                said[name] += got
                ended |= set() if got else {name}
        served(daemon)
        return len(ended) == len(slow)

    until(drip)
    for name in ("nothing", "half a head", "head", "after an answer"):
        assert said[name] in {b"", first}, name
    for name in ("half a body", "body"):
        assert said[name].startswith(b"HTTP/1.1 408"), name
        assert b'{"error":"request timeout"' in said[name]


def test_client_that_does_not_read(daemon, connect):
    stuck = connect(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 900, SO_RCVBUF=4096)
    ours = stuck.getsockname()
    process = psutil.Process(daemon.pid)

    def held():
        served(daemon)
        return any(found.raddr == ours for found in process.net_connections("tcp") if found.raddr)

    assert held()
    until(lambda: not held(), pause=0.5)
    got = rest(stuck)
    assert got.count(b"HTTP/1.1 200") < 900


def test_head_limit(daemon, connect):
    endless = connect(b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 20_000)
    assert re.match(rb"HTTP/1.1 4(00|31) ", rest(endless))
    many = connect(b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 4000)
    assert re.match(rb"HTTP/1.1 4(00|31) ", rest(many))
    served(daemon)


def test_url_limit(daemon, connect):
    for target in (f"/{'a' * 8200}", f"/api/v1/jobs?status={'a' * 8200}"):
        got = rest(connect(head(daemon, f"GET {target} HTTP/1.1", "Connection: close")))
        assert got.startswith(b"HTTP/1.1 400")
        assert b"over 8192 bytes" in got
    assert daemon.call("GET", f"/api/v1/jobs?volume_name={'a' * 255}").status_code == 200


def test_body_limit(daemon, connect):
    for tail in ("Content-Length: 65537", "Transfer-Encoding: chunked"):
        chunk = b"1000\r\n" + 4096 * b" " + b"\r\n"
        data = head(daemon, "POST /api/v1/jobs HTTP/1.1", JSON, tail) + (17 * chunk if "chunked" in tail else b"")
        assert connect(data).recv(65536).startswith(b"HTTP/1.1 413")
    served(daemon)


def test_silent_clients_and_operator(daemon, connect):
    """With four times the connections that one address may have, an operator behind that address is still served."""
    silent = [connect() for _ in range(80)]
    headers = {"X-API-Token": daemon.token}
    with httpx.Client(base_url=daemon.url, headers=headers, trust_env=False, timeout=TIMEOUT) as kept:
        for _ in range(20):
            silent += [connect() for _ in range(5)]
            assert kept.get("/api/v1/jobs").status_code == 200
            assert daemon.call("GET", "/api/v1/jobs").status_code == 200
            served(daemon)
    until(lambda: _refused(daemon) >= len(silent) - 20)  # the metrics are up to a second old


def _refused(daemon):
    found = re.search(
        r"^libvirt_volume_provisioner_connections_refused_total (\d+)", _metrics(daemon) or "", re.MULTILINE
    )
    return int(found[1]) if found else 0


def _metrics(daemon):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{daemon.url}/metrics", trust_env=False, timeout=TIMEOUT).text
    return None


def test_slow_handshake_is_disconnected(tmp_path):
    folder = tmp_path / "d"
    ca = trustme.CA()
    file = tmp_path / "server.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    tls = {"tls_certificate": str(file), "tls_key": str(file)}
    daemon = Daemon(folder, plain_config(folder, server={"bind": ["127.0.0.1:0"], **tls})).start()
    try:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        with socket.create_connection(("127.0.0.1", int(daemon.url.rpartition(":")[2]))) as silent:
            silent.settimeout(TIMEOUT)
            began = time.monotonic()
            assert httpx.get(f"{daemon.url}/health", verify=context, trust_env=False).status_code == 200
            assert silent.recv(1) == b""
            assert time.monotonic() - began < TIMEOUT
    finally:
        assert daemon.stop() == 0
