# ruff: noqa: ASYNC109 - httpcore's interface has a timeout for each call
"""Which addresses a source connects to: judged where the connection is made, on the very address it is made to.

Owns the judgement and the step from a host's name to a socket. A name is looked up once, and what comes of that is
both judged and used: a name server that gives another answer a moment later changes nothing. Behind a proxy it is the
proxy that looks names up, and this is not asked.
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

# Where clouds answer their machines with credentials; most are link-local, these are not.
_METADATA = {
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
}
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


def refusal(address: Address) -> str | None:
    """What kind of address that is, where images are not fetched from its kind; None for all others.

    Private networks are where image servers stand, and not refused.
    """
    inner = _carried(address)
    if inner in _METADATA:
        return "the metadata service of a cloud"
    if inner.is_loopback:
        return "this host itself"
    if inner.is_link_local:
        return "a link-local address"
    if inner.is_unspecified or inner in _THIS_NETWORK:
        return "no address of a host"
    if inner.is_multicast:
        return "a multicast address"
    return "a reserved address" if inner.is_reserved else None


def permitted(host: str, address: Address, allowed: Sequence[Network]) -> bool:
    """Whether ``host``, that is at ``address``, may be connected to.

    What a url says literally (an address, or ``localhost``) was judged with the url: the source is configured for it.
    """
    if refusal(address) is None or any(each in network for network in allowed for each in (address, _carried(address))):
        return True
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return _carried(address).is_loopback
    try:
        return ipaddress.ip_address(name) == address
    except ValueError:
        return False


def networks(texts: Iterable[str]) -> list[Network]:
    """Networks as the configuration writes them, ``127.0.0.0/8`` or one address. Raises ValueError."""
    return [ipaddress.ip_network(text) for text in texts]


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it stands for one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour
    if embedded is not None:
        return embedded
    compatible = address in _COMPATIBLE and int(address) > 0xFFFF  # not :: and ::1
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 or compatible else address


class Backend(httpcore.AsyncNetworkBackend):
    """Connects to permitted addresses only; to all if ``allowed`` is None (a proxy that the configuration names).

    Raises UrlNotAllowedError if a host has no permitted address. ``threads`` bounds the look-ups under way: one that a
    cancel leaves behind ends when the system's resolver gives up (its timeouts are in resolv.conf).
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
        del local_address  # not offered in the configuration
        failed: Exception | None = None
        for address in await self._addresses(host, port):
            try:
                return await connect(address, port, timeout, socket_options or ())
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error  # the next address may answer
        raise failed or httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of ``host`` that may be connected to, in the system's order."""
        look_up = partial(socket.getaddrinfo, host.strip("[]"), port, type=socket.SOCK_STREAM)
        try:
            found = look_up(flags=socket.AI_NUMERICHOST)  # an address, in whatever spelling: no name server is asked
        except OSError:
            try:
                found = await trio.to_thread.run_sync(look_up, limiter=self._threads, abandon_on_cancel=True)
            except OSError as error:
                raise httpcore.ConnectError(str(error)) from error
        texts = list(dict.fromkeys(str(place[0]) for *_, place in found))
        if self._allowed is None:
            return texts
        good = [text for text in texts if permitted(host, ipaddress.ip_address(text), self._allowed)]
        if texts and not good:
            kind = refusal(ipaddress.ip_address(texts[0]))
            raise UrlNotAllowedError(
                f"the host {host} has the address {texts[0]}, {kind}: its source may not connect there "
                "(allow_addresses in the source's table would let it)"
            )
        return good


class ClosingSSLSocket(ssl.SSLSocket):
    """Python leaves the socket open to the garbage collector where the peer reset it before the handshake."""

    def getpeername(self) -> object:
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer") from error
