# ruff: noqa: ASYNC109 - httpcore's interface has a timeout for each call
"""The policy on which addresses a source may connect to, checked when the connection is made.

A host name is resolved once, and the same addresses are checked and connected to, so DNS rebinding cannot bypass the
policy. If a proxy is used, the proxy resolves names and the policy does not apply.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING

import httpcore
import trio

from provisioner.contracts.errors import UrlNotAllowedError
from provisioner.contracts.http.network import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Cloud metadata services, which return credentials. Most are link-local; these are not.
_METADATA = {
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
}
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


def refusal(address: Address) -> str | None:
    """Return why images are not fetched from ``address``, None if they may be.

    Private networks are permitted: image servers are usually there.
    """
    inner = _embedded_ipv4(address)
    if inner in _METADATA:
        return "a cloud metadata service"
    if inner.is_loopback:
        return "this host"
    if inner.is_link_local:
        return "a link-local address"
    if inner.is_unspecified or inner in _THIS_NETWORK:
        return "not a host address"
    if inner.is_multicast:
        return "a multicast address"
    return "a reserved address" if inner.is_reserved else None


def permitted(host: str, address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether ``host``, which resolves to ``address``, may be connected to.

    A literal address or ``localhost`` in a url is permitted: the source is configured for that url.
    """
    if refusal(address) is None or any(
        each in network for network in allowed for each in (address, _embedded_ipv4(address))
    ):
        return True
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return _embedded_ipv4(address).is_loopback
    try:
        return ipaddress.ip_address(name) == address
    except ValueError:
        return False


def networks(texts: Iterable[str]) -> list[Network]:
    """Parse configured networks, such as ``127.0.0.0/8``, or single addresses. Raises ValueError."""
    return [ipaddress.ip_network(text) for text in texts]


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address, or the address itself if there is none."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is not None:
        return embedded
    compatible = address in _COMPATIBLE and int(address) > 0xFFFF  # not :: and ::1
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 or compatible else address


class Backend(httpcore.AsyncNetworkBackend):
    """A network backend that connects to permitted addresses only, or to all if ``allowed`` is None (for a proxy).

    Raises UrlNotAllowedError if a host has no permitted address. ``threads`` limits concurrent look-ups: an abandoned
    one ends when the system's resolver times out (see resolv.conf).
    """

    def __init__(self, allowed: Sequence[Network] | None, threads: trio.CapacityLimiter) -> None:
        self._allowed = allowed
        self._threads = threads

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del local_address  # not configurable
        failed: Exception | None = None
        for address in await self._addresses(host, port):
            try:
                return await connect(address, port, timeout, socket_options or ())
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error  # try the next address
        raise failed or httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the permitted addresses of ``host`` in the order of the system's resolver."""
        look_up = partial(socket.getaddrinfo, host.strip("[]"), port, type=socket.SOCK_STREAM)
        try:
            found = look_up(flags=socket.AI_NUMERICHOST)  # an address in any notation; needs no name server
        except OSError:
            try:
                found = await trio.to_thread.run_sync(look_up, limiter=self._threads, abandon_on_cancel=True)
            except OSError as error:
                raise httpcore.ConnectError(str(error)) from error
        texts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        if self._allowed is None:
            return texts
        good = [text for text in texts if permitted(host, ipaddress.ip_address(text), self._allowed)]
        if texts and not good:
            reason = refusal(ipaddress.ip_address(texts[0]))
            raise UrlNotAllowedError(
                f"the host {host} has the address {texts[0]} ({reason}), which its source may not connect to; "
                "permit it with allow_addresses in the source's table"
            )
        return good


class ClosingSSLSocket(ssl.SSLSocket):
    """An SSL socket that is closed if the peer resets it before the handshake; Python leaves it open."""

    def getpeername(self) -> object:
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer") from error
