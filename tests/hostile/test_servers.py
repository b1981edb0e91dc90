"""Servers that send wrong sizes, stall, never end, redirect elsewhere or publish wrong checksums; and forbidden urls.

Every url has a signature in its query, which must not appear in any error or log line.
"""

from __future__ import annotations

import hashlib
import re

import pytest

from tests.hostile.conftest import running
from tests.hostile.forge import MIB
from tests.hostile.server import scripted_server

pytestmark = pytest.mark.slow

SIGNED = "?X-Amz-Credential=AKIA&X-Amz-Signature=5ECRET5IGNATURE&x=5ECRET5IGNATURE"


def failed(host, url, words, **more):
    """Run a failing job and return its error; check that the job and the log hide the signature."""
    job = host.ask(url + SIGNED, "raw", **more)
    assert job["status"] == "failed", job
    assert re.search(words, job["error"]), job["error"]
    shown = {**job, "image_url": None, "request": None}  # the submitter gets the url back unchanged
    assert "5ECRET" not in str(shown)
    assert "5ECRET" not in host.daemon.log_file.read_text()
    host.check_unchanged()
    return job["error"]


@pytest.fixture(scope="module")
def servers():
    """Return the server of the source, and one that no source is configured for."""
    with scripted_server() as ours, scripted_server() as foreign:
        foreign.answers["/x"] = b"readable by this host only"
        yield ours, foreign


@pytest.fixture(scope="module")
def host(tmp_path_factory, shop, servers):
    ours = servers[0]
    source = {
        "plugin": "http",
        # Alternative spellings of this host's address and of a metadata service's.
        "urls": [ours.of("/"), ours.of("/", "127.1"), ours.of("/", "2130706433"), "http://169.254.43518/"],
        "stall_timeout": "1s",
        "connect_timeout": "1s",
    }
    cache = {"download_attempts": 2, "max_size": "32MiB"}
    ours.answers["/disk.raw"] = shop.raw.read_bytes()
    folder = tmp_path_factory.mktemp("scripted") / "d"
    with running(folder, shop, lambda name: ours.of(f"/{name}"), sources={"http": source}, cache=cache) as host:
        yield host


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def announces(size, sends):
    def talk(client):
        client.head(200, Content_Length=str(size))
        client.say(b"x" * sends)

    return talk


def never_ends(head):
    def talk(client):
        client.head(200, **head)
        while client.command != "HEAD" and not client.server.state.over.is_set():
            client.say(b"10000\r\n" + b"x" * 65536 + b"\r\n" if "Transfer_Encoding" in head else b"x" * 65536)

    return talk


def stalls(client):
    client.head(200, Content_Length=str(MIB))
    client.say(b"x" * 1000)
    if client.command != "HEAD":
        client.wait_for_disconnect()


def says_nothing(client):
    client.wait_for_disconnect()


def another_size(client):
    client.head(200, Content_Length=str(MIB if "Range" in client.headers else 2 * MIB))
    client.say(b"x" * (2 * MIB))


def headers_without_end(client):
    client.send_response(200)
    for number in range(100_000):
        client.wfile.write(f"X-{number}: {'y' * 50}\r\n".encode())
    client.end_headers()


def encoded(client):
    client.head(200, Content_Length="10", Content_Encoding="br")
    client.say(b"x" * 10)


def url_in_status_line(client):
    client.wfile.write(f"GET {client.path} HTTP/1.1\r\n\r\n".encode())


def url_in_header(client):
    client.wfile.write(f"HTTP/1.1 200 OK\r\nX Y {client.path}\r\n\r\n".encode())


def url_as_encoding(client):
    client.head(200, Content_Length="10", Content_Encoding=client.path)


def url_in_location(client):
    client.head(302, Location=f"http://elsewhere.example/x?{client.path}", Content_Length="0")


def url_in_broken_location(client):
    client.head(302, Location=f"http://[::1{client.path}", Content_Length="0")


def redirects_to(place):
    def talk(client):
        client.head(302, Location=place.format(foreign=client.server.foreign), Content_Length="0")

    return talk


BEHAVIOURS = {
    "ends-early": (announces(MIB, MIB // 2), "the connection broke: peer closed|too early"),
    "sends-more-than-it-says": (announces(1000, MIB), "is not the expected one|does not match|sha256"),
    "says-2-63": (announces(2**63, 1000), "room"),
    "says-99-digits": (announces(10**98, 1000), "."),
    "says-no-number": (announces("-1", 1000), "."),
    "never-ends": (never_ends({"Connection": "close"}), "the image is larger than"),
    "never-ends-in-chunks": (never_ends({"Transfer_Encoding": "chunked"}), "the image is larger than"),
    "stalls": (stalls, "stalled"),
    "says-nothing": (says_nothing, "stalled"),
    "another-size-than-before": (another_size, "announced"),
    "headers-without-end": (headers_without_end, "."),
    "encoded": (encoded, "content encoding"),
    "redirect-to-a-file": (redirects_to("file:///etc/passwd"), "belongs to no configured source"),
    "redirect-to-metadata": (redirects_to("http://169.254.169.254/latest/"), "belongs to no configured source"),
    "redirect-to-a-foreign-server": (redirects_to("{foreign}"), "belongs to no configured source"),
    "redirect-with-a-password": (redirects_to("http://u:p@127.0.0.1/x"), "belongs to no configured source"),
    "redirect-for-ever": (redirects_to("/redirect-for-ever"), "redirects more than"),
    "repeats-in-its-status-line": (url_in_status_line, "the connection broke"),
    "repeats-in-a-header": (url_in_header, "the connection broke"),
    "repeats-as-its-encoding": (url_as_encoding, "content encoding"),
    "repeats-as-its-location": (url_in_location, "belongs to no configured source"),
    "repeats-as-a-broken-location": (
        url_in_broken_location,
        "redirects to an invalid url|Invalid URL in location header",
    ),
    "redirect-up": (redirects_to("/a/../../x"), "does not exist|belongs to no"),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_hostile_server(host, servers, name):
    ours, foreign = servers
    talk, words = BEHAVIOURS[name]

    def answer(client):
        client.server.foreign = foreign.of("/x")
        talk(client)

    ours.answers[f"/{name}"] = answer
    failed(host, ours.of(f"/{name}"), words, checksum=digest(b"x" * MIB))
    assert foreign.asked == []


GOOD = hashlib.sha256(b"x" * MIB).hexdigest()
SIDECARS = {
    "wrong": (f"{64 * '0'}  disk\n".encode(), "digest|sha256"),
    "short": (b"abcdef  disk\n", "contains no sha256 digest"),
    "long": (f"{GOOD}{GOOD}  disk\n".encode(), "contains no sha256 digest"),
    "of-megabytes": (f"{GOOD}  other\n{64 * 'a'}  more\n".encode() * 20_000, "names other, not disk"),
    "of-another-file": (f"{GOOD}  other.xz\n".encode(), "names other.xz, not disk"),
    "contradicting-itself": (f"{GOOD}  disk\n{64 * 'a'}  disk\n".encode(), "more than one sha256 digest"),
    "of-nothing": (b"", "contains no sha256 digest"),
    "of-garbage": (bytes(range(256)) * 100, "contains no sha256 digest"),
    "of-html": (b"<html>not found</html>", "is a web page"),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_hostile_checksum_file(host, servers, kind):
    ours = servers[0]
    text, words = SIDECARS[kind]
    ours.answers |= {f"/{kind}/disk": b"x" * MIB, f"/{kind}/disk.sha256": text}
    failed(host, ours.of(f"/{kind}/disk"), words)


def test_missing_checksum(host, servers):
    servers[0].answers["/alone/disk"] = b"x" * MIB
    failed(host, servers[0].of("/alone/disk"), "no checksum is known")


# --- addresses


@pytest.mark.parametrize("name", ["127.1", "2130706433"])
def test_name_of_this_host(host, servers, name):
    """A configured name that resolves to this host, as if its owner had pointed it here."""
    before = list(servers[0].asked)
    job = host.ask(servers[0].of("/disk.raw", name), "raw", checksum=digest(b"x"))
    assert "127.0.0.1 (this host)" in job["error"], job
    assert servers[0].asked == before
    host.check_unchanged()


def test_name_of_a_metadata_service(host):
    job = host.ask("http://169.254.43518/latest/meta-data", "raw", checksum=digest(b"x"))
    assert "169.254.169.254 (a link-local address)" in job["error"], job
    host.check_unchanged()


REFUSED = [
    "file:///etc/passwd", "FILE:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "nbd://127.0.0.1/x",
    "json:{}", "/etc/passwd", "//127.0.0.1/x", "http:///x", "http://", "HTTP", "",
    "{base}/../etc/passwd", "{base}/a/%2e%2e/b", "{base}/a/%2E%2E/b", "{base}/a/%252e%252e/b", "{base}/a/./b",
    "http://user:password@127.0.0.1:{port}/x", "http://user@127.0.0.1:{port}/x", "http://127.0.0.1:{port}@evil.example/x",
    "http://evil.example/x", "http://127.0.0.1.evil.example:{port}/x", "http://127.0.0.1:1/x",
    "http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/latest", "http://[::ffff:169.254.169.254]/latest",
    "http://[::1]:{port}/x", "http://0.0.0.0:{port}/x", "http://localhost:{port}/x", "http://0x7f000001:{port}/x",
    "{base}\\..\\x", "{base}/x#y", "{base}/x y", "{base}/x\ny", "{base}/x\r\nHost: evil", "{base}/\u0000", "{base}/ü",
    "http://127.0.0.1:{port}:80/x", "http://127.0.0.1:99999999/x", "{base}/" + 5000 * "x",
    "https://127.0.0.1:{port}/x", "s3://bucket/key",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_submit_forbidden_url(host, servers, text):
    url = text.replace("{base}", servers[0].of("")).replace("{port}", str(servers[0].port))
    before, files = list(servers[0].asked), host.daemon.files()
    body = {"image_url": url, "volume_name": "web01", "volume_size_gb": 1, "image_type": "raw"}
    answer = host.daemon.call("POST", "/api/v1/jobs", {**body, "checksum": digest(b"x")})
    assert answer.status_code == 400, answer.text
    assert "password" not in answer.text or "password" not in url or "user name or password" in answer.text
    assert servers[0].asked == before
    assert host.daemon.files() == files
