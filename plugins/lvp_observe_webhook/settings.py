"""The settings of the observer ``webhook``."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import AbsolutePath, Duration, HttpOptions, SecretRef, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATTERN = re.compile(r"(job|volume|cache)\.(\*|[a-z]+)")


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where webhooks go, which, and how long to try.

    ``secret`` refers to ``whsec_`` and 24 to 64 bytes in base64. ``allow_addresses`` are networks that the url's host
    name may resolve to although they are loopback, link-local, a metadata service or the like.
    """

    url: str
    secret: SecretRef
    events: list[str] = msgspec.field(default_factory=lambda: ["job.*", "volume.*", "cache.*"])
    ca_file: AbsolutePath | None = None
    client_certificate: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    proxy: str | None = None
    allow_addresses: list[str] = msgspec.field(default_factory=list)
    # A receiver should store a message and answer at once.
    timeout: Duration = Duration(15)
    # A weekend, and the Monday on which somebody notices.
    give_up_after: Duration = Duration(3 * 86400)
    # Some 1 KiB each.
    max_waiting: int = 10_000

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^#\s]*)?", self.url):
            yield "url must be such as 'https://ci.example.com/hook', without a user name"
        if not self.events:
            yield "events must name at least one kind"
        for text in self.events:
            if not _PATTERN.fullmatch(text):
                yield f"'{text}' is not a kind of event such as 'job.completed', 'volume.*' or 'cache.added'"
        if self.client_key and not self.client_certificate:
            yield "client_key needs client_certificate"
        if self.proxy is not None and not re.fullmatch(r"https?://[^/@?#\s]+/?", self.proxy):
            yield "proxy must be a url such as 'http://proxy.example.com:3128', without a user name"
        if self.timeout <= 0 or self.give_up_after <= 0 or self.max_waiting < 1:
            yield "timeout, give_up_after and max_waiting must be over 0"
        for text in self.allow_addresses:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                yield f"allow_addresses must contain networks such as '127.0.0.0/8': {error}"

    def options(self) -> HttpOptions:
        """Return the options of the connection."""
        return HttpOptions(
            ca_file=self.ca_file,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
            proxy=self.proxy,
            connections=2,
            allow_addresses=tuple(self.allow_addresses),
        )
