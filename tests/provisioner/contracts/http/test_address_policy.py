"""The address policy: decisions about addresses, and connections to names that resolve to forbidden ones."""

import errno
import ipaddress
import os
import socket
import ssl

import pytest

from provisioner.contracts import HttpOptions, HttpTransport
from provisioner.contracts.errors import SourceError, UrlNotAllowedError
from provisioner.contracts.http.address_policy import ClosingSSLSocket, networks, permitted, refusal
from tests.servers.raw import holds, raw_server, says

ip = ipaddress.ip_address
real_lookup = socket.getaddrinfo


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "this host"),
        ("127.8.9.1", "this host"),
        ("::1", "this host"),
        ("169.254.169.254", "link-local"),
        ("169.254.0.9", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%lo", "link-local"),
        ("febf::1", "link-local"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("0.0.0.0", "not a host"),
        ("0.1.2.3", "not a host"),
        ("::", "not a host"),
        ("224.0.0.251", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        # IPv4 embedded in IPv6
        ("::ffff:127.0.0.1", "this host"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:a9fe:a9fe", "link-local"),
        ("::169.254.169.254", "link-local"),
        ("64:ff9b::169.254.169.254", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2002:7f00:1::", "this host"),
    ],
)
def test_refusal_of_special_addresses(address, kind):
    assert kind in refusal(ip(address))
    assert not permitted("images.example.org", ip(address), [])


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.5", "172.16.1.1", "192.168.1.10", "100.64.0.1", "8.8.8.8", "fd12:3456::1", "2001:4860:4860::8888",
        "::ffff:10.0.0.5", "64:ff9b::8.8.8.8", "169.253.1.1", "128.0.0.1",
    ],
)  # fmt: skip
def test_refusal_none_for_usual_addresses(address):
    assert refusal(ip(address)) is None
    assert permitted("images.example.org", ip(address), [])


@pytest.mark.parametrize(
    ("host", "address", "allowed", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", [], True),
        ("[::1]", "::1", [], True),
        ("localhost", "127.0.0.1", [], True),
        ("Localhost.", "::1", [], True),
        ("bucket.localhost", "127.0.0.1", [], True),
        ("localhost", "169.254.169.254", [], False),
        ("notlocalhost", "127.0.0.1", [], False),
        ("localhost.example.org", "127.0.0.1", [], False),
        ("127.0.0.1", "127.0.0.2", [], False),
        # The resolver takes these for addresses; a url parser does not.
        ("127.1", "127.0.0.1", [], False),
        ("2130706433", "127.0.0.1", [], False),
        ("0x7f000001", "127.0.0.1", [], False),
        ("images.example.org", "127.0.0.1", ["127.0.0.0/8"], True),
        ("images.example.org", "::ffff:127.0.0.1", ["127.0.0.0/8"], True),
        ("images.example.org", "127.0.0.1", ["::1", "169.254.0.0/16"], False),
        ("images.example.org", "169.254.7.7", ["169.254.7.7"], True),
        ("images.example.org", "169.254.7.8", ["169.254.7.7"], False),
        ("images.example.org", "fe80::1", ["fe80::/10"], True),
    ],
)
def test_permitted_by_configuration(host, address, allowed, expected):
    assert permitted(host, ip(address), networks(allowed)) is expected


@pytest.fixture
def names(monkeypatch):
    """A fake name service: each look-up of a name returns its next answer; the last answer repeats."""
    answers, asked = {}, []

    def look_up(host, port, *arguments, **more):
        if host not in answers:
            return real_lookup(host, port, *arguments, **more)
        if more.get("flags"):  # a check for a literal address
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        asked.append(host)
        found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [info for each in found for info in real_lookup(each, port, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    answers["asked"] = asked
    return answers


def transport(*allowed, **options):
    return HttpTransport(HttpOptions(allow_addresses=allowed, **options), lambda _url: True)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_name_resolving_to_loopback_rejected(names, scheme):
    names["images.test"] = [["127.0.0.1"]]
    async with raw_server(holds(b"abc")) as server:
        with pytest.raises(
            UrlNotAllowedError, match=r"images\.test has the address 127\.0\.0\.1 \(this host\)"
        ) as caught:
            await transport().stat(f"{scheme}://images.test:{server.port}/disk")
        assert not caught.value.temporary
        assert server.requests == []


async def test_name_resolving_to_loopback_allowed(names):
    names["images.test"] = [["127.0.0.1"]]
    web = transport("127.0.0.1")
    async with raw_server(holds(b"abc")) as server:
        assert (await web.stat(f"http://images.test:{server.port}/disk")).size == 3
    await web.aclose()


async def test_rebinding_name_connects_once_checked(names, monkeypatch):
    """The name first resolves to a permitted address, and to the metadata service a moment later."""
    connected = []

    def connect(_socket, address):
        connected.append(address[0])
        return errno.ECONNREFUSED

    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    names["rebinds.test"] = [["10.9.8.7"], ["169.254.169.254"]]
    web = transport()
    with pytest.raises(SourceError, match="refused"):
        await web.stat("http://rebinds.test/disk")
    assert (names["asked"], connected) == (["rebinds.test"], ["10.9.8.7"])
    with pytest.raises(UrlNotAllowedError, match=r"169\.254\.169\.254 \(a link-local"):
        await web.stat("http://rebinds.test/disk")
    assert connected == ["10.9.8.7"]


async def test_only_permitted_addresses_are_tried(names, monkeypatch):
    connected = []

    def connect(_socket, address):
        connected.append(address[0])
        return errno.ETIMEDOUT

    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    names["mixed.test"] = [["169.254.169.254", "10.9.8.7", "127.0.0.1", "10.9.8.6"]]
    with pytest.raises(SourceError, match="Connection timed out"):
        await transport().stat("http://mixed.test/disk")
    assert connected == ["10.9.8.7", "10.9.8.6"]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1"])
async def test_unusual_address_notation_rejected(host):
    async with raw_server(holds(b"abc")) as server:
        with pytest.raises(UrlNotAllowedError, match="this host"):
            await transport().stat(f"http://{host}:{server.port}/disk")
        assert server.requests == []


async def test_redirect_target_address_checked(names):
    names["mirror.test"] = [["127.0.0.1"]]
    async with (
        raw_server(holds(b"secret")) as inner,
        raw_server(says(f"302 On\nLocation: http://mirror.test:{inner.port}/x\nContent-Length: 0")) as outer,
    ):
        web = transport()
        with pytest.raises(UrlNotAllowedError, match=r"mirror\.test"):
            await web.stat(f"{outer.url}/disk")
        assert inner.requests == []


async def test_unknown_host():
    with pytest.raises(SourceError, match="host not found") as caught:
        await transport().stat("http://no-such-host.invalid/disk")
    assert not caught.value.temporary


def test_ssl_socket_closed_on_early_reset():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted = server.accept()[0]
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
    context = ssl.create_default_context()
    context.sslsocket_class = ClosingSSLSocket
    number = client.fileno()
    with pytest.raises(ConnectionResetError) as caught:
        context.wrap_socket(client, server_hostname="localhost")
    with pytest.raises(OSError, match="Bad file"):  # while the error still references the socket
        os.fstat(number)
    assert caught.value.__traceback__ is not None
