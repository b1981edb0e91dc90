"""The settings that all HTTP sources share: trust, proxy, timeouts and rate limits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts.http.address_policy import networks
from provisioner.contracts.http.options import HttpOptions
from provisioner.contracts.settings import AbsolutePath, ByteSize, Duration, SecretRef, checksum_file_faults, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator


class TransportSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The connection keys of a source's table.

    ``ca_file`` replaces the system's certificate authorities. ``proxy`` is a url; ``trust_env`` takes proxies from the
    environment instead. ``rate_limit`` is in bytes per second for all transfers of the source together.
    ``allow_addresses`` are networks that host names may resolve to although they are loopback, link-local, a metadata
    service or the like; literal addresses in ``urls`` or ``endpoint`` need no entry. ``parallel_ranges`` is the number
    of connections that one image may take if a single one is slow. ``checksum_files`` are patterns such as
    ``{dir}/{name}-CHECKSUM``, with the image's folder and file name: where to look for checksums before the names that
    publishers commonly use.
    """

    ca_file: AbsolutePath | None = None
    client_certificate: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password: SecretRef | None = None
    trust_env: bool = False
    # A running host completes the handshake within a second; ten seconds cover a lost packet or two.
    connect_timeout: Duration = Duration(10)
    # Object stores may take seconds to the first byte; after half a minute without data the peer is dead.
    stall_timeout: Duration = Duration(30)
    # At this rate a GiB takes twelve days: a server this slow only occupies a worker. 0 disables the check.
    min_rate: ByteSize = ByteSize(1024)
    connections: int = 16
    # More connections for one image would be unfair to others, and some servers refuse them.
    parallel_ranges: int = 4
    rate_limit: ByteSize | None = None
    allow_addresses: list[str] = msgspec.field(default_factory=list)
    checksum_files: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        refuse(self.faults())

    def faults(self) -> Iterator[str]:
        """Yield a message for each invalid setting. Subclasses extend it."""
        if self.client_key and not self.client_certificate:
            yield "client_key needs client_certificate"
        if self.proxy is not None and not re.fullmatch(r"https?://[^/@?#\s]+/?", self.proxy):
            yield "proxy must be a url such as 'http://proxy.example.com:3128', without a user name"
        if self.proxy and self.trust_env:
            yield "proxy and trust_env must not both be set"
        if (self.proxy_username is None) != (self.proxy_password is None):
            yield "proxy_username and proxy_password must be set together"
        if not 1 <= self.connections <= 1000:
            yield "connections must be 1 to 1000"
        if not 1 <= self.parallel_ranges <= 16:
            yield "parallel_ranges must be 1 to 16"
        if self.connect_timeout <= 0 or self.stall_timeout <= 0:
            yield "connect_timeout and stall_timeout must be over 0"
        if self.rate_limit is not None and self.rate_limit < 1024:
            yield "rate_limit must be at least 1KiB"
        yield from self._faults_of_lists()

    def _faults_of_lists(self) -> Iterator[str]:
        for text in self.allow_addresses:
            try:
                networks([text])
            except ValueError as error:
                yield f"allow_addresses must contain networks such as '127.0.0.0/8': {error}"
        yield from checksum_file_faults(self.checksum_files)

    @property
    def ranges_of_an_image(self) -> int:
        """Return over how many connections one image may be fetched; more do not help against ``rate_limit``."""
        return min(self.parallel_ranges, self.connections) if self.rate_limit is None else 1

    def options(
        self, *, any_encoding: bool = False, prepare_redirects: bool = False, stat_with_get: bool = False
    ) -> HttpOptions:
        """Return the settings as options for the transport."""
        return HttpOptions(
            ca_file=self.ca_file,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
            proxy=self.proxy,
            proxy_username=self.proxy_username,
            proxy_password=self.proxy_password,
            trust_env=self.trust_env,
            connect_timeout=self.connect_timeout,
            stall_timeout=self.stall_timeout,
            min_rate=self.min_rate,
            connections=self.connections,
            rate_limit=self.rate_limit,
            any_encoding=any_encoding,
            prepare_redirects=prepare_redirects,
            allow_addresses=tuple(self.allow_addresses),
            stat_with_get=stat_with_get,
        )
